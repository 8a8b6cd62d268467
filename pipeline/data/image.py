"""One image file: decoded as RGB, or the reason why it cannot be."""

import os
import stat
from collections.abc import Iterable

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.run.commands import command_line
from pipeline.run.errors import UserError

# The formats that DALI knows, by content and not by name. Pillow knows more, and would even start
# Ghostscript for an EPS file.
FORMATS = ("JPEG", "JPEG2000", "PNG", "PPM", "BMP", "TIFF", "WEBP")


def open_rgb(path: str) -> Image.Image:
    """Decode an image file completely, as RGB; an orientation in its EXIF data is not applied.

    A file that cannot be read, whatever the reason, is a UserError that names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _rgb(image)
    except Exception as error:
        raise _bad_image(path, _reason(error)) from error


def unreadable(path: str) -> str | None:
    """Why a loader may fail on an image file, in one line, or None if all of it can be decoded.

    Data that decoders guess from, such as bits that changed within a JPEG, are not noticed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a regular file"  # to open a pipe would wait
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (1, 1))  # reads a JPEG to its end, but computes few of its pixels
            _rgb(image)
        if image.format == "PNG":
            _check_png(path)
    except Exception as error:
        return _reason(error)
    return None


def first_unreadable(paths: Iterable[str]) -> UserError | None:
    """The error that names the first of these files that cannot be decoded."""
    for path in paths:
        if reason := unreadable(path):
            return _bad_image(path, reason)
    return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _check_png(path: str) -> None:
    """Raise OSError or SyntaxError unless a PNG is whole to its last chunk.

    DALI refuses one that has all pixels but no end, which Pillow decodes.
    """
    with open(path, "rb") as file, Image.open(file, formats=["PNG"]) as image:
        image.verify()
        if len(file.read(4)) < 4:  # the last checksum, which Pillow does not look at
            raise OSError("image file is truncated")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _bad_image(path: str, reason: str) -> UserError:
    verify = command_line("prepare", "verify", "DATA")
    return UserError(
        f"data.path: cannot read the image {path} ({reason}); replace or remove it ({verify} finds "
        "all such, data.exclude leaves them out)"
    )
