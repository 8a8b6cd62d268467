"""A drawn stand-in for ImageNet: JPEG files of ten shapes that are told apart by their form alone.

Its layout is ``<root>/train/<class>/<number>.JPEG`` and ``<root>/val/...``, as torchvision's
ImageFolder and DALI's file reader expect it. Colours, backgrounds, places, sizes and small
rotations are random and the same for all classes, so that neither single pixels nor colours tell a
class. No class is another's mirror image. Every file depends on ``(seed, split, class, number)``
alone.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import UserError

VERSION = 2  # raise it when the pictures change: an older data set is then not taken for this one
MARKER = "synthetic.json"
SPLITS = ("train", "val")
SUPERSAMPLING = 3
LUMA = np.array([0.299, 0.587, 0.114])

Points = NDArray[np.complex128]
Field = NDArray[np.float32]
Size = tuple[int, int]


def _arc(radius: float, start: float, stop: float, centre: complex = 0j, n: int = 48) -> Points:
    """``n`` points on a circle from ``start`` to ``stop`` (in turns, clockwise on the screen)."""
    return centre + radius * np.exp(2j * np.pi * np.linspace(start, stop, n))


# A shape is its outline, followed by its holes, as points x + iy with y downwards, which lie about
# within |z| <= 1.


def disc() -> list[Points]:
    return [_arc(0.85, 0, 1)]


def ring() -> list[Points]:
    return [_arc(0.95, 0, 1), _arc(0.5, 0, 1)]


def triangle() -> list[Points]:
    return [0.15j + _arc(1.05, -1 / 4, 5 / 12, n=3)]


def square() -> list[Points]:
    return [_arc(1.1, 1 / 8, 7 / 8, n=4)]


def cross() -> list[Points]:
    corner = np.array([0.3 - 1j, 0.3 - 0.3j, 1 - 0.3j])
    return [np.concatenate([corner * 1j**k for k in range(4)])]


def star() -> list[Points]:
    return [
        np.stack([_arc(1.1, -1 / 4, 11 / 20, n=5), _arc(0.42, -3 / 20, 13 / 20, n=5)], 1).ravel()
    ]


def crescent() -> list[Points]:
    return [np.concatenate([_arc(1, 1 / 6, 5 / 6), _arc(0.9, 0.74, 0.26, 0.45 + 0j)])]


def heart() -> list[Points]:
    """The curve x = sin^3 t, y = -(13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) / 16."""
    t = np.linspace(0, 2 * np.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.sin(t) ** 3 - 1j * y / 16]


def arrow() -> list[Points]:
    return [
        np.array([-1 - 0.25j, 0.1 - 0.25j, 0.1 - 0.85j, 1, 0.1 + 0.85j, 0.1 + 0.25j, -1 + 0.25j])
    ]


def hourglass() -> list[Points]:
    return [np.array([-0.8 - 1j, 0.8 - 1j, 0.12, 0.8 + 1j, -0.8 + 1j, -0.12])]


SHAPES: dict[str, Callable[[], list[Points]]] = {
    shape.__name__: shape
    for shape in (arrow, crescent, cross, disc, heart, hourglass, ring, square, star, triangle)
}


def _mask(rng: Generator, name: str, size: Size) -> Image.Image:
    """How much of every pixel the shape covers.

    Its radius is 36 to 47 % of the shorter side. It lies wholly inside, turned by up to 15 degrees
    and stretched by up to 15 %.
    """
    radius = rng.uniform(0.36, 0.47) * min(size)
    centre = complex(*(rng.uniform(radius, side - radius) for side in size))
    turn, stretch = np.exp(1j * np.deg2rad(rng.uniform(-15, 15))), np.exp(rng.uniform(-0.14, 0.14))
    canvas = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for fill, points in zip((255, 0), SHAPES[name](), strict=False):
        stretched = points.real * stretch + 1j * points.imag / stretch
        placed = SUPERSAMPLING * (centre + radius * turn * stretched)
        pen.polygon([(z.real, z.imag) for z in placed.tolist()], fill=fill)
    return canvas.reduce(SUPERSAMPLING)


def _ramp(rng: Generator, size: Size) -> Field:
    """A coordinate, about -1 to 1, along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y[:, None]


def _wave(rng: Generator, size: Size) -> Field:
    """A sine of 1 to 3 waves per side along a random direction."""
    return np.sin(np.float32(np.pi * rng.uniform(2, 6)) * _ramp(rng, size) + rng.uniform(0, 6))


def _image(field: Field) -> Image.Image:
    """A grey image of a field in which -1 is black and 1 is white."""
    return Image.fromarray(np.uint8(np.clip(127.5 * field + 128, 0, 255)))


def gradient(rng: Generator, size: Size) -> Image.Image:
    return _image(_ramp(rng, size))


def stripes(rng: Generator, size: Size) -> Image.Image:
    return _image(_wave(rng, size))


def checks(rng: Generator, size: Size) -> Image.Image:
    return _image(_wave(rng, size) * _wave(rng, size))


def clouds(rng: Generator, size: Size) -> Image.Image:
    grid = rng.integers(0, 256, rng.integers(3, 10, 2), np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def scribble(rng: Generator, size: Size) -> Image.Image:
    """Thin strokes: edges that belong to no shape."""
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for ends in rng.uniform(0, 1, (12, 4)).tolist():
        pen.line([side * end for side, end in zip(size * 2, ends, strict=True)], 255, 1)
    return canvas.filter(ImageFilter.BoxBlur(0.5))


BACKGROUNDS = (gradient, stripes, checks, clouds, scribble)


def _colours(rng: Generator) -> NDArray[np.uint8]:
    """Two similar colours for the background and two for the shape, (4, 3) from 0 to 255: grey
    levels at least 100 apart, either the lighter (else pixels tell the shape by template), with
    tints of up to 50 that keep the luma, each channel then varied by up to 25."""
    dark = rng.uniform(15, 135)
    levels = rng.permutation([dark, rng.uniform(dark + 100, 240)])
    tints = rng.uniform(-50, 50, (2, 3))
    tinted = levels[:, None] + tints - (tints @ LUMA)[:, None]
    colours = np.repeat(tinted, 2, axis=0) + rng.uniform(-25, 25, (4, 3))
    return np.clip(colours, 0, 255).astype(np.uint8)


def picture(seed: int, split: str, name: str, number: int) -> Image.Image:
    """Image ``number`` of class ``name``: RGB, 72 to 120 pixels wide and high."""
    rng = np.random.default_rng([seed, SPLITS.index(split), list(SHAPES).index(name), number])
    width, height = rng.integers(72, 121, 2).tolist()
    size = width, height
    first, second, third, fourth = (
        Image.new("RGB", size, tuple(c)) for c in _colours(rng).tolist()
    )
    backdrop = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng, size)
    ground = Image.composite(first, second, backdrop)
    figure = Image.composite(third, fourth, gradient(rng, size))
    drawn = Image.composite(figure, ground, _mask(rng, name, size))
    grain = int(rng.integers(1, 12))
    noise = Image.fromarray(rng.integers(0, 2 * grain, (height, width), np.uint8)).convert("RGB")
    return ImageChops.add(drawn, noise, offset=-grain)


def default_root() -> Path:
    """Where the data set lies when nobody says so."""
    return Path("data") / "synthetic"


def draw(root: Path, *, seed: int = 0, train: int = 3000, val: int = 500) -> Path:
    """Draw the data set into ``root``, or take the one that is there; returns ``root``.

    ``train`` and ``val`` are the images of a split, over all classes. ``root`` appears when all
    is written, so an interrupted drawing leaves nothing behind. Raises UserError where another
    data set lies there or the place cannot be written.
    """
    wanted = {"version": VERSION, "seed": seed, "train": train, "val": val}
    if _exists(root, wanted):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
            whole = Path(folder) / "whole"
            _draw_all(whole, seed, {"train": train, "val": val})
            (whole / MARKER).write_text(json.dumps(wanted), encoding="utf-8")
            whole.rename(root)
    except OSError as error:
        if _exists(root, wanted):  # another process drew it meanwhile
            return root
        raise UserError(
            f"cannot draw the data set into {root}: {error.strerror}; start where there is room, "
            "or set data.path"
        ) from None
    return root


def _exists(root: Path, wanted: dict[str, int]) -> bool:
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != wanted:
        raise UserError(f"{root} holds something else than the drawn data set; move it away")
    files = sum(1 for _ in root.glob("*/*/*.JPEG"))
    if files != wanted["train"] + wanted["val"]:
        raise UserError(f"{root} has lost some of its images; remove it, to be drawn again")
    return True


def _draw_all(root: Path, seed: int, counts: dict[str, int]) -> None:
    names = list(SHAPES)
    jobs = [(split, names[i % len(names)], i // len(names)) for split in SPLITS
            for i in range(counts[split])]  # fmt: skip
    for split in SPLITS:
        for name in names:
            (root / split / name).mkdir(parents=True)

    logger.info("drawing the %d images of %s once", len(jobs), root)
    with ProgressBar("drawing", len(jobs)) as bar:  # threads would wait for the interpreter's lock
        for split, name, number in jobs:
            file = root / split / name / f"{number:05d}.JPEG"
            picture(seed, split, name, number).save(file, "JPEG", quality=90)
            bar.advance()
