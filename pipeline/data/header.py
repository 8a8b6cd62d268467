"""Which image files DALI decodes as Pillow does, told from their bytes and not from their names.

Those are the plain kinds, of which nearly every data set consists: JPEG of 8 bits, baseline or
progressive, grey or YCbCr; and PNG of 8 bits, grey or in colour, without interlacing and without
chunks that change colours. Both must be whole to their end. On any other kind decoders differ.
"""

import struct
import zlib
from typing import BinaryIO

MOST_PIXELS = 178_956_970  # of an image; Pillow refuses larger ones before it decodes anything

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = (0, 2, 6)  # grey, RGB, RGB with alpha
_PNG_HARMLESS = {b"IDAT", b"IEND", b"bKGD", b"eXIf", b"gAMA", b"cHRM", b"iCCP", b"iTXt", b"pHYs",
                 b"sRGB", b"tEXt", b"tIME", b"zTXt"}  # fmt: skip

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_TAIL = 1024  # bytes at the end of a file in which the end of its image is looked for
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended and progressive
_SCAN = 0xFFDA
_ADOBE = 0xFFEE
_HARMLESS = {0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0)}  # tables, comments, metadata
_SAMPLINGS = {
    b"\x11", b"\x11\x11\x11", b"\x12\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11", b"\x41\x11\x11"
}  # fmt: skip


def is_plain(file: BinaryIO) -> bool:
    """Whether the image in a file, which is at its beginning, is of a plain kind."""
    start = file.read(len(_PNG))
    try:
        if start.startswith(_JPEG):
            return _is_plain_jpeg(file)
        return start == _PNG and _is_plain_png(file)
    except struct.error:  # it ends within its header
        return False


def _is_plain_jpeg(file: BinaryIO) -> bool:
    file.seek(2)
    frame = b""
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        body = file.read(length - 2) if length > 2 else b""
        if marker == _SCAN:
            return _is_plain_frame(frame) and _has_jpeg_end(file)
        if marker in _FRAMES and not frame:
            frame = body
        elif marker not in _HARMLESS:
            return False
        if marker == _ADOBE and body[:5] == b"Adobe" and body[11:12] != b"\1":  # no YCbCr
            return False


def _is_plain_frame(frame: bytes) -> bool:
    bits, height, width, count = struct.unpack(">BHHB", frame[:6])
    names, samplings = frame[6::3], frame[7::3]
    return (
        bits == 8
        and count in (1, 3)
        and len(frame) == 6 + 3 * count
        and samplings in _SAMPLINGS
        and names != b"RGB"  # decoders take these letters for what they say
        and 0 < height * width <= MOST_PIXELS
    )


def _has_jpeg_end(file: BinaryIO) -> bool:
    """Whether the end of the image lies close to the end of the file, so that nothing is cut off;
    these two bytes do not occur within the image."""
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(max(start, size - _JPEG_TAIL))
    return _JPEG_END in file.read()


def _is_plain_png(file: BinaryIO) -> bool:
    name = head = b""
    while name != b"IEND":
        length, name = struct.unpack(">I4s", file.read(8))
        data, checksum = file.read(length), file.read(4)
        if struct.pack(">I", zlib.crc32(data, zlib.crc32(name))) != checksum:
            return False
        if name == b"IHDR" and not head:
            head = data
        elif name not in _PNG_HARMLESS:
            return False
    return _is_plain_png_header(head) and not file.read(1)


def _is_plain_png_header(head: bytes) -> bool:
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    return (
        (bits, interlaced) == (8, 0)
        and colour in _PNG_COLOURS
        and 0 < width * height <= MOST_PIXELS
    )
