"""The images that a person names, and how they become what a network takes."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.header import MOST_PIXELS
from pipeline.data.image import central, opened, reason, resized, resized_sides, to_rgb
from pipeline.data.tree import ENDINGS
from pipeline.export.packed import Images
from pipeline.run.errors import UserError
from pipeline.run.files import open_file


class Found(NamedTuple):
    """An image file, and the folders between it and the folder that was named."""

    path: Path
    folders: tuple[str, ...] = ()


class Bad(Exception):
    """Why an image cannot be used, in one line."""


def find(named: Sequence[str]) -> list[Found]:
    """The images that files and folders stand for, those of a folder sorted by name. A file that is
    named itself may have any ending.

    Raises UserError where there is no such file, or a folder has no images.
    """
    found: list[Found] = []
    for name in named:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name}: there is no such file; name an image or a folder of images")
        inside = sorted(_walk(path)) if path.is_dir() else [Found(path)]
        if not inside:
            raise UserError(f"{name} holds no images ({' '.join(ENDINGS)}); name another folder")
        found += inside
    return found


def _walk(root: Path) -> Iterator[Found]:
    for folder, _, files in os.walk(root):
        folders = PurePath(folder).relative_to(root).parts
        for name in files:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Found(Path(folder, name), folders)


def label_of(image: Found, classes: Collection[str]) -> str | None:
    """The class that the innermost folder which is named like one says; None if there is none."""
    return next((name for name in reversed(image.folders) if name in classes), None)


def class_folders(images: Iterable[Found]) -> list[str]:
    """The names of the outermost folders in which images lie, sorted."""
    return sorted({image.folders[0] for image in images if image.folders})


def prepare(path: Path, wanted: Images) -> npt.NDArray[np.float32]:
    """The image in a file as a network takes it, (3, size, size), as its evaluation prepares it.

    Raises Bad where it cannot be read, or is too elongated to be made smaller.
    """
    try:
        with open_file(path) as file, opened(file) as image:
            rgb = to_rgb(image)
    except Exception as error:
        raise Bad(reason(error)) from None
    pixels = np.asarray(_cropped(rgb, wanted), np.float32)
    mean, std = (np.array(each, np.float32) for each in (wanted.mean, wanted.std))
    values = (pixels / np.float32(wanted.divisor) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _cropped(image: Image.Image, wanted: Images) -> Image.Image:
    """The square in the middle, once the short side is ``resize`` pixels long."""
    width, height = resized_sides(image, wanted.resize)
    if width * height > MOST_PIXELS:
        raise Bad(f"{image.width} x {image.height} pixels are too elongated")
    return central(resized(image, wanted.resize), wanted.size)
