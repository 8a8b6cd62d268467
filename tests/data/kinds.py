"""Image files of every kind, built from one image: what Pillow writes, and by hand what it does
not."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.data.fixtures import smooth

SIDE = 48
RGB = np.asarray(smooth(SIDE, SIDE, 3))
IMAGE = Image.fromarray(RGB)
GREY_IMAGE = IMAGE.convert("L")
GREY = np.asarray(GREY_IMAGE)
BLACK = np.where(GREY < 128, 0, 255).astype(np.uint8)
BOMB_SIDE = 30_000


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# JPEG


def jpeg(image=IMAGE, **options):
    return saved(image, "JPEG", **{"quality": 95, **options})


def before(content, marker, insert):
    """A JPEG with bytes put in before the first marker of a kind."""
    place = content.index(marker)
    return content[:place] + insert + content[place:]


def frame(content, number, **changes):
    """A JPEG with other bytes in its frame header, by their distance from its marker."""
    place = content.index(b"\xff\xc0")
    changed = bytearray(content)
    changed[place + 1] = number
    for distance, byte in changes.items():
        changed[place + int(distance[1:])] = byte
    return bytes(changed)


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # the transform follows
FILLED = before(jpeg(), b"\xff\xdb", b"\xff\xff\xff")  # fill bytes before a marker
JFIF = jpeg()[2:20]
NO_JFIF = jpeg().replace(JFIF, b"", 1)

JPEGS = {
    "baseline": jpeg(),
    "progressive": jpeg(progressive=True),
    "optimized": jpeg(optimize=True),
    "4:4:4": jpeg(subsampling="4:4:4"),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "4:2:0": jpeg(subsampling="4:2:0"),
    "progressive 4:4:4": jpeg(subsampling="4:4:4", progressive=True),
    "restart": jpeg(restart_marker_blocks=1),
    "quality 1": jpeg(quality=1),
    "exif": jpeg(exif=orientation(6)),
    "large exif": jpeg(exif=b"Exif\0\0" + bytes(60_000)),
    "icc": jpeg(icc_profile=bytes(70_000)),
    "comment": jpeg(comment=b"a comment"),
    "adobe": before(jpeg(), b"\xff\xdb", ADOBE + b"\1"),
    "adobe alone": before(NO_JFIF, b"\xff\xdb", ADOBE + b"\1"),
    "adobe rgb": before(NO_JFIF, b"\xff\xdb", ADOBE + b"\0"),
    "adobe rgb behind the frame": before(NO_JFIF, b"\xff\xda", ADOBE + b"\0"),
    "kept rgb": jpeg(keep_rgb=True),
    "no jfif": NO_JFIF,
    "trailing": jpeg() + b"more",
    "trailing zeros": jpeg() + bytes(5000),
    "filled": FILLED,
    "mpo": saved(IMAGE, "MPO", save_all=True, append_images=[GREY_IMAGE.convert("RGB")]),
    "sof1": frame(jpeg(), 0xC1),
    "grey jpeg": jpeg(GREY_IMAGE),
    "grey progressive": jpeg(GREY_IMAGE, progressive=True),
    "grey 2x2": frame(jpeg(GREY_IMAGE), 0xC0, _11=0x22),
    "cmyk": jpeg(IMAGE.convert("CMYK")),
    "cmyk progressive": jpeg(IMAGE.convert("CMYK"), progressive=True),
}
BAD_JPEGS = {
    "12 bits": frame(jpeg(), 0xC1, _4=12),
    "lossless": frame(jpeg(), 0xC3),
    "no height": frame(jpeg(), 0xC0, _5=0, _6=0),
    "half": jpeg()[: len(jpeg()) // 2],
    "without end": jpeg()[:-2],
    "progressive half": jpeg(progressive=True)[:-400],
    "cut header": jpeg()[:100],
}

# PNG


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]  # fmt: skip


def png(pixels, bits=8, colour=2, chunks=(), interlaced=False):
    """A PNG of pixels (H, W, C), or (H, W) for one channel; ``chunks`` stand before the data."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [pixels]
    rows = b"".join(b"\0" + packed(row, bits) for part in parts for row in part)
    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    body = [chunk(b"IHDR", head), *(chunk(*each) for each in chunks)]
    body += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def packed(row, bits):
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    each = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(each).tobytes()


WIDE = RGB.astype(np.uint16) * 257
WIDE_GREY = GREY.astype(np.uint16) * 257
ALPHA = np.dstack([RGB, GREY])
PALETTE = Image.fromarray(RGB).quantize(64)
PLTE = (b"PLTE", bytes(PALETTE.getpalette("RGB")))
INDICES = np.asarray(PALETTE)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
APNG = saved(IMAGE, "PNG", save_all=True, append_images=[GREY_IMAGE.convert("RGB")])
BROKEN = bytearray(png(RGB, chunks=[(b"tEXt", b"a\0b")]))
BROKEN[-20] ^= 1  # within the checksum of the data or the data themselves

PNGS = {
    "rgb": png(RGB),
    "rgb by pillow": saved(IMAGE, "PNG"),
    "rgba": png(ALPHA, colour=6),
    "rgb trns": png(RGB, chunks=[(b"tRNS", struct.pack(">HHH", *RGB[0, 0].tolist()))]),
    "rgb 16": png(WIDE, 16),
    "rgba 16": png(np.dstack([WIDE, WIDE_GREY]), 16, 6),
    "rgb interlaced": png(RGB, interlaced=True),
    "rgb gamma": png(RGB, chunks=[(b"gAMA", struct.pack(">I", 100_000))]),
    "rgb gamma 1": png(RGB, chunks=[(b"gAMA", struct.pack(">I", 10_000))]),
    "rgb srgb": png(RGB, chunks=[(b"sRGB", b"\0")]),
    "rgb chromaticities": png(RGB, chunks=[(b"cHRM", struct.pack(">8I", *[30_000] * 8))]),
    "rgb background": png(RGB, chunks=[(b"bKGD", b"\0\1\0\2\0\3")]),
    "rgba background": png(ALPHA, colour=6, chunks=[(b"bKGD", b"\0\1\0\2\0\3")]),
    "rgb exif": saved(IMAGE, "PNG", exif=orientation(6)),
    "rgb icc": saved(IMAGE, "PNG", icc_profile=bytes(3000)),
    "rgb sbit": png(RGB, chunks=[(b"sBIT", b"\5\6\5")]),
    "rgb text": png(RGB, chunks=[(b"tEXt", b"a\0b"), (b"pHYs", bytes(9))]),
    "rgb with palette": png(RGB, chunks=[(b"PLTE", bytes(range(12)))]),
    "rgb trailing": png(RGB) + b"more",
    "animated": APNG,
    "palette": png(INDICES, 8, 3, [PLTE]),
    "palette trns": png(INDICES, 8, 3, [PLTE, (b"tRNS", bytes(range(64)))]),
    "palette interlaced": png(INDICES, 8, 3, [PLTE], interlaced=True),
    "grey": png(GREY, colour=0),
    "grey trns": png(GREY, colour=0, chunks=[(b"tRNS", struct.pack(">H", int(GREY[0, 0])))]),
    "grey alpha": png(np.dstack([GREY, GREY]), colour=4),
    "grey 16": png(WIDE_GREY, 16, 0),
    "grey alpha 16": png(np.dstack([WIDE_GREY, WIDE_GREY]), 16, 4),
    "grey interlaced": png(GREY, colour=0, interlaced=True),
    "black 1": png(BLACK // 255, 1, 0),
    "black 2": png(BLACK // 85, 2, 0),
    "black 4": png(BLACK // 17, 4, 0),
    "black 4 interlaced": png(BLACK // 17, 4, 0, interlaced=True),
}
BAD_PNGS = {
    "png without end": png(RGB)[:-12],
    "png without its last byte": png(RGB)[:-1],
    "png half": png(RGB)[: len(png(RGB)) // 2],
    "png checksum": bytes(BROKEN),
    "png header": png(RGB)[:20],
}


def bomb():
    """An image of 900 million pixels in a megabyte or less; the data are never looked at."""
    rows = zlib.compress(bytes(BOMB_SIDE * (BOMB_SIDE // 8 + 1)))
    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# The formats of Netpbm


def netpbm(number, pixels, most=None, comment=b""):
    height, width = pixels.shape[:2]
    head = b"P%d\n%s%d %d\n" % (number, comment, width, height)
    head += b"" if most is None else b"%d\n" % most
    if number == 4:
        return head + np.packbits(pixels, axis=1).tobytes()
    if number > 4:
        return head + pixels.astype(">u2" if most > 255 else np.uint8).tobytes()
    return head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in pixels)


def scaled(pixels, most):
    return np.round(pixels / 255 * most).astype(np.uint16)


NETPBM = {
    "p1": netpbm(1, 1 - BLACK // 255),
    "p2": netpbm(2, GREY, 255),
    "p3": netpbm(3, RGB, 255),
    "p4": netpbm(4, 1 - BLACK // 255),
    "p5": netpbm(5, GREY, 255),
    "p6": netpbm(6, RGB, 255),
    "p6 comment": netpbm(6, RGB, 255, b"# a comment\n"),
    "p2 plain 1": netpbm(2, BLACK // 255, 1),
    "p5 1": netpbm(5, BLACK // 255, 1),
    "p5 100": netpbm(5, scaled(GREY, 100), 100),
    "p5 1023": netpbm(5, scaled(GREY, 1023), 1023),
    "p5 65535": netpbm(5, scaled(GREY, 65535), 65535),
    "p2 65535": netpbm(2, scaled(GREY, 65535), 65535),
    "p6 15": netpbm(6, scaled(RGB, 15), 15),
    "p6 254": netpbm(6, scaled(RGB, 254), 254),
    "p6 256": netpbm(6, scaled(RGB, 256), 256),
    "p6 65535": netpbm(6, scaled(RGB, 65535), 65535),
    "p3 1023": netpbm(3, scaled(RGB, 1023), 1023),
}
BAD_NETPBM = {
    "pfm": b"Pf\n48 48\n-1.0\n" + GREY.astype("<f4").tobytes(),
    "p6 cut": netpbm(6, RGB, 255)[:-5],
    "p6 no maximum": netpbm(6, RGB, 0),
}

# BMP


def bmp(bits, body, compression=0, height=SIDE, masks=b""):
    head = struct.pack(
        "<IiiHHIIiiII", 40, SIDE, height, 1, bits, compression, len(body), 0, 0, 256, 0
    ) if bits == 8 else struct.pack(
        "<IiiHHIIiiII", 40, SIDE, height, 1, bits, compression, len(body), 0, 0, 0, 0
    )  # fmt: skip
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256)) if bits == 8 else masks
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body


def rle(pixels):
    rows = [b"".join(bytes((1, v)) for v in row.tolist()) + b"\0\0" for row in pixels[::-1]]
    return b"".join(rows) + b"\0\1"


BGR = RGB[..., ::-1]
FIVES = (RGB >> 3).astype(np.uint16)
FIVE = (FIVES[..., 0] << 10 | FIVES[..., 1] << 5 | FIVES[..., 2]).astype("<u2")
MASKS = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
SIX = (FIVES[..., 0] << 11 | (RGB[..., 1].astype(np.uint16) >> 2) << 5 | FIVES[..., 2]).astype(
    "<u2"
)

BMPS = {
    "bmp": saved(IMAGE, "BMP"),
    "bmp grey": saved(GREY_IMAGE, "BMP"),
    "bmp palette": saved(PALETTE, "BMP"),
    "bmp rgba": saved(Image.fromarray(ALPHA), "BMP"),
    "bmp black": saved(Image.fromarray(BLACK).convert("1"), "BMP"),
    "bmp top-down": bmp(24, BGR.tobytes(), height=-SIDE),
    "bmp 555": bmp(16, FIVE[::-1].tobytes()),
    "bmp 565": bmp(16, SIX[::-1].tobytes(), 3, masks=MASKS),
    "bmp grey rle": bmp(8, rle(GREY), 1),
}
BAD_BMPS = {"bmp cut": saved(IMAGE, "BMP")[:-50]}

# TIFF


def tiff(image=IMAGE, **options):
    return saved(image, "TIFF", **options)


TIFFS = {
    "tiff": tiff(),
    "tiff lzw": tiff(compression="tiff_lzw"),
    "tiff deflate": tiff(compression="tiff_adobe_deflate"),
    "tiff packbits": tiff(compression="packbits"),
    "tiff jpeg": tiff(compression="jpeg", quality=95),
    "tiff big": tiff(big_tiff=True),
    "tiff strips": tiff(compression="tiff_lzw", strip_size=1000),
    "tiff pages": tiff(save_all=True, append_images=[GREY_IMAGE.convert("RGB")]),
    "tiff rgba": tiff(Image.fromarray(ALPHA)),
    "tiff cmyk": tiff(IMAGE.convert("CMYK")),
    "tiff palette": tiff(PALETTE),
    "tiff grey": tiff(GREY_IMAGE),
    "tiff grey alpha": tiff(GREY_IMAGE.convert("LA")),
    "tiff grey 16": tiff(Image.fromarray(WIDE_GREY)),
    "tiff lab": tiff(Image.merge("LAB", IMAGE.split())),
    "tiff black": tiff(Image.fromarray(BLACK).convert("1")),
    "tiff black fax": tiff(Image.fromarray(BLACK).convert("1"), compression="group4"),
    **{f"tiff turned {n}": tiff(tiffinfo={274: n}) for n in range(2, 9)},
    **{f"tiff turned {n} lzw": tiff(tiffinfo={274: n}, compression="tiff_lzw") for n in (3, 6)},
}
BAD_TIFFS = {
    "tiff float": tiff(Image.fromarray(GREY.astype(np.float32))),
    "tiff integer": tiff(Image.fromarray(GREY.astype(np.int32))),
    "tiff cut": tiff()[:-50],
}

# Others

OTHERS = {
    "webp": saved(IMAGE, "WEBP", quality=95),
    "webp lossless": saved(IMAGE, "WEBP", lossless=True),
    "webp alpha": saved(Image.fromarray(ALPHA), "WEBP", lossless=True, exact=True),
    "webp animated": saved(
        IMAGE, "WEBP", lossless=True, save_all=True, append_images=[GREY_IMAGE.convert("RGB")]
    ),
    "jp2": saved(IMAGE, "JPEG2000"),
    "j2k": saved(IMAGE, "JPEG2000", no_jp2=True),
    "jp2 alpha": saved(Image.fromarray(ALPHA), "JPEG2000"),
    "jp2 grey": saved(GREY_IMAGE, "JPEG2000"),
    "jp2 grey 16": saved(Image.fromarray(WIDE_GREY), "JPEG2000"),
}
BAD_OTHERS = {
    "gif": saved(IMAGE, "GIF"),
    "ico": saved(IMAGE, "ICO"),
    "tga": saved(IMAGE, "TGA"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "webp cut": saved(IMAGE, "WEBP")[:-4],
    "jp2 cut": saved(IMAGE, "JPEG2000")[:200],
    "empty": b"",
    "text": b"no image\n" * 20,
    "zeros": bytes(3000),
    "html": b"<!DOCTYPE html><html></html>",
}

GOOD = JPEGS | PNGS | NETPBM | BMPS | TIFFS | OTHERS
BAD = BAD_JPEGS | BAD_PNGS | BAD_NETPBM | BAD_BMPS | BAD_TIFFS | BAD_OTHERS
