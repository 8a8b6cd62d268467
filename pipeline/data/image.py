"""One image file: decoded as RGB by Pillow, or the reason why it cannot be.

Every loader takes or refuses the same files, since a loader that decodes otherwise does so with
plain files only (see header.py), and leaves all others to ``open_rgb``.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.header import MOST_PIXELS
from pipeline.run.commands import command_line
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

# By content and not by name. Pillow knows more, and would even start Ghostscript for an EPS file.
FORMATS = ("JPEG", "JPEG2000", "PNG", "PPM", "BMP", "TIFF", "WEBP")
BITS_PER_SAMPLE = 258  # the tag of a TIFF

# Pillow warns of images half as large as those that it refuses; see MOST_PIXELS.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(root: Path | str, name: str) -> Image.Image:
    """Decode the image file ``name`` of the data set at ``root`` completely, as RGB.

    Colours of 16 bits keep their upper 8, and transparency is dropped. A TIFF is turned as its tag
    says; an orientation in EXIF data is not applied. A file that cannot be read, whatever the
    reason, is a UserError that names it.
    """
    return decoded(partial(open_file, f"{root}/{name}"), partial(bad_image, root, name))


def decoded(open_it: Callable[[], BinaryIO], refused: Callable[[str], UserError]) -> Image.Image:
    """The image in the file that ``open_it`` gives, as ``open_rgb`` does; raises what ``refused``
    makes of the reason where that fails."""
    try:
        with open_it() as file, opened(file) as image:
            return to_rgb(image)
    except Exception as error:
        raise refused(reason(error)) from error


def unreadable(open_it: Callable[[], BinaryIO]) -> str | None:
    """Why the image in the file that ``open_it`` gives cannot be decoded, in one line, or None if
    it can.

    Data that decoders guess from, such as bits that changed within a JPEG, are not noticed.
    """
    try:
        with open_it() as file, opened(file) as image:
            image.draft("RGB", (1, 1))  # reads a JPEG to its end, but computes few of its pixels
            to_rgb(image)
    except Exception as error:
        return reason(error)
    return None


def bad_image(root: Path | str, name: str, why: str) -> UserError:
    """The error for an image of the data set at ``root`` that cannot be used."""
    verify = command_line("prepare", "verify", str(root))
    return UserError(
        f"data.path: cannot read the image {root}/{name} ({why}); replace or remove it, or "
        f"leave out all such: {verify} lists them for data.exclude=bad-images.txt"
    )


def opened(file: BinaryIO) -> Image.Image:
    """The image in a file, of which only the header is read, but a PNG is checked to its end."""
    try:
        image = Image.open(file, formats=FORMATS)
        if image.format != "PNG":
            return image
        image.verify()  # compares the checksums, which decoding does not
        if len(file.read(4)) < 4:  # the last one, which Pillow does not look at
            raise OSError("image file is truncated")
        file.seek(0)
        return Image.open(file, formats=("PNG",))
    except Image.DecompressionBombError:
        raise OSError(f"more than {MOST_PIXELS:,} pixels") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` decoded as RGB, as ``open_rgb`` gives it. Raises OSError for pixels of a type whose
    range is not known, and whatever Pillow raises."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise OSError(f"pixels of the type {image.mode}, whose range is not known")
    if not image.mode.startswith("I"):
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        return image.convert("RGB")
    bits = image.tag_v2[BITS_PER_SAMPLE][0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
    upper = np.asarray(image) >> (bits - 8)  # convert would clip at 255
    return Image.fromarray(upper.astype(np.uint8)).convert("RGB")


def resized(image: Image.Image, resize: int) -> Image.Image:
    """``image`` with a short side of ``resize`` pixels, rounded as in torchvision."""
    width, height = resized_sides(image, resize)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def resized_sides(image: Image.Image, resize: int) -> tuple[int, int]:
    """The width and height that ``resized`` gives ``image``."""
    width, height = (side * resize // min(image.size) for side in image.size)
    return width, height


def central(image: Image.Image, size: int) -> Image.Image:
    """The square of ``size`` pixels in the middle, rounded as in torchvision."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def reason(error: Exception) -> str:
    """Why an image could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
