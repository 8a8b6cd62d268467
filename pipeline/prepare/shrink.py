"""One image, made smaller for a tree that is quick to read."""

import io

from PIL import Image

from pipeline.data.image import opened, reason, to_rgb

GAP = 2  # a JPEG is decoded at no less than so many times the size that is asked for


class Unreadable(Exception):
    """An image that cannot be decoded; the message says why, in one line."""


def shrunk(content: bytes, side: int, quality: int) -> bytes:
    """The image of a file with this ``content`` as a JPEG, the shorter side of which has ``side``
    pixels. A JPEG that is no larger than that stays as it is; nothing is enlarged.

    The filter is the one with which images are resized for evaluation. Raises Unreadable.
    """
    try:
        with opened(io.BytesIO(content)) as image:
            size = _size(image.width, image.height, side)
            is_kept = image.format == "JPEG" and size == image.size
            image.draft("RGB", (GAP * size[0], GAP * size[1]))
            pixels = to_rgb(image)
        return content if is_kept else _jpeg(pixels, size, quality)
    except Exception as error:
        raise Unreadable(reason(error)) from None


def _size(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1, side / min(width, height))
    return round(width * scale), round(height * scale)


def _jpeg(image: Image.Image, size: tuple[int, int], quality: int) -> bytes:
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
