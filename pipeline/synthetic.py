"""A drawn data set for trying things out: ten shapes, told apart by form alone, as JPEG files.

    <root>/train/<class>/<number>.JPEG    <root>/val/<class>/<number>.JPEG

Colours, backgrounds, places, sizes and small rotations are random and distributed alike in all
classes; shapes are as often lighter as darker than what is behind them, and none is another's
mirror image. So neither single pixels nor colours tell a class (tests/test_synthetic.py).
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.log import logger

VERSION = 1  # raise it when pictures change: an older data set is then not taken for this one
MARKER = "synthetic.json"
SPLITS = ("train", "val")
SUPERSAMPLING = 3  # smooth edges: masks are drawn this many times larger

Points = NDArray[np.complex128]
Field = NDArray[np.float32]
Size = tuple[int, int]  # width, height in pixels


def _arc(radius: float, start: float, stop: float, centre: complex = 0, n: int = 48) -> Points:
    """``n`` points on a circle, from ``start`` to ``stop`` in turns, clockwise on the screen."""
    return centre + radius * np.exp(2j * np.pi * np.linspace(start, stop, n))


# A shape is its outline and its holes: points x + iy with y downwards, in about |z| <= 1.


def arrow() -> list[Points]:
    half = np.array([-1 - 0.25j, 0.1 - 0.25j, 0.1 - 0.85j, 1])
    return [np.concatenate([half, half[::-1].conj()])]


def crescent() -> list[Points]:
    return [np.concatenate([_arc(1, 1 / 6, 5 / 6), _arc(0.9, 0.74, 0.26, 0.45)])]


def cross() -> list[Points]:
    corner = np.array([0.3 - 1j, 0.3 - 0.3j, 1 - 0.3j])
    return [np.concatenate([corner * 1j**k for k in range(4)])]


def disc() -> list[Points]:
    return [_arc(0.85, 0, 1)]


def heart() -> list[Points]:
    """x = sin^3 t, y = -(13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) / 16."""
    t = np.linspace(0, 2 * np.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.sin(t) ** 3 - 1j * y / 16]


def hourglass() -> list[Points]:
    return [np.array([-0.8 - 1j, 0.8 - 1j, 0.12, 0.8 + 1j, -0.8 + 1j, -0.12])]


def ring() -> list[Points]:
    return [_arc(0.95, 0, 1), _arc(0.5, 0, 1)]


def square() -> list[Points]:
    return [_arc(1.1, 1 / 8, 7 / 8, n=4)]


def star() -> list[Points]:
    tips, dents = _arc(1.1, -1 / 4, 11 / 20, n=5), _arc(0.42, -3 / 20, 13 / 20, n=5)
    return [np.stack([tips, dents], 1).ravel()]


def triangle() -> list[Points]:
    return [_arc(1.05, -1 / 4, 5 / 12, 0.15j, n=3)]


SHAPES: dict[str, Callable[[], list[Points]]] = {
    shape.__name__: shape
    for shape in (arrow, crescent, cross, disc, heart, hourglass, ring, square, star, triangle)
}


def _mask(rng: Generator, name: str, size: Size) -> Image.Image:
    """Each pixel's share of the shape: radius 36 to 47 % of the short side, wholly inside,
    turned by up to 15 degrees, sides stretched by up to 15 % against each other... """
    radius = rng.uniform(0.36, 0.47) * min(size)
    centre = complex(*(rng.uniform(radius, side - radius) for side in size))
    turn, stretch = np.exp(1j * np.deg2rad(rng.uniform(-15, 15))), np.exp(rng.uniform(-0.14, 0.14))
    canvas = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for number, points in enumerate(SHAPES[name]()):
        stretched = points.real * stretch + 1j * points.imag / stretch
        placed = SUPERSAMPLING * (centre + radius * turn * stretched)
        pen.polygon([(z.real, z.imag) for z in placed.tolist()], fill=0 if number else 255)
    return canvas.reduce(SUPERSAMPLING)


def _ramp(rng: Generator, size: Size) -> Field:
    """The coordinate along a random direction; the sides are at -1 and 1."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y[:, None]


def _wave(rng: Generator, size: Size) -> Field:
    """A sine with 2 to 6 waves from side to side, along a random direction."""
    return np.sin(np.float32(np.pi * rng.uniform(2, 6)) * _ramp(rng, size) + rng.uniform(0, 6))


def _grey(field: Field) -> Image.Image:
    """-1 to 1 become black to white."""
    return Image.fromarray(np.uint8(np.clip(127.5 * field + 128, 0, 255)))


def gradient(rng: Generator, size: Size) -> Image.Image:
    return _grey(_ramp(rng, size))


def stripes(rng: Generator, size: Size) -> Image.Image:
    return _grey(_wave(rng, size))


def checks(rng: Generator, size: Size) -> Image.Image:
    return _grey(_wave(rng, size) * _wave(rng, size))


def clouds(rng: Generator, size: Size) -> Image.Image:
    cells = rng.integers(0, 256, rng.integers(3, 10, 2), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def scribble(rng: Generator, size: Size) -> Image.Image:
    """A dozen strokes: edges that belong to no shape."""
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for ends in rng.uniform(0, 1, (12, 4)).tolist():
        pen.line([side * end for side, end in zip(size * 2, ends, strict=True)], 255, 1)
    return canvas.filter(ImageFilter.BoxBlur(0.5))


BACKGROUNDS = (gradient, stripes, checks, clouds, scribble)
