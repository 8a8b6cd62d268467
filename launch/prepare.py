"""Make a data set ready for training, and look at its files."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.command import Parser, choose, command, whole
from pipeline.run.cores import cores

IMAGENET = Parser(
    "prepare imagenet",
    "ARCHIVES DST [--short-side N] [--quality Q] [--no-checksums] [--workers N]",
    """Make a tree of ImageNet's official archives.

    ARCHIVES holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
    ILSVRC2012_devkit_t12.tar.gz. They are only read, and nothing else is unpacked on the way. DST
    gets train/ and val/ with a folder for each class, classes.json with the words for these, and
    manifest.json. Started again after a kill, it goes on. Exits with 1 if there are images that
    could not be read.
    """,
    ("/path/to/archives /path/to/imagenet", "archives imagenet-256 --short-side 256"),
)
IMAGENET.add_argument(
    "archives", metavar="ARCHIVES", type=Path, help="the folder that holds the three files"
)
TINY = Parser(
    "prepare tiny_imagenet",
    "ZIP DST [--no-checksums] [--workers N]",
    """Make a tree of the archive of Tiny ImageNet.

    ZIP is tiny-imagenet-200.zip, which is only read. DST gets train/ and val/ with a folder for
    each of the 200 classes, classes.json with the words for these, and manifest.json; the test
    images, whose classes nobody was told, are left out. Started again after a kill, it goes on.
    Exits with 1 if there are images that could not be read.
    """,
    ("tiny-imagenet-200.zip data/tiny-imagenet",),
)
TINY.add_argument("archive", metavar="ZIP", type=Path, help="the archive")
RESIZE = Parser(
    "prepare resize",
    "SRC DST [--short-side N] [--quality Q] [--workers N]",
    """Make a tree of small JPEGs out of any tree.

    SRC is only read. DST gets the same splits, classes and names, and manifest.json. An image that
    is small already is not enlarged, and stays as it is where it is a JPEG. Started again after a
    kill, it goes on. Exits with 1 if there are images that could not be read.
    """,
    ("/path/to/imagenet imagenet-256", "data data-160 --short-side 160 --quality 95"),
)
SHARD = Parser(
    "prepare shard",
    "SRC DST [--images N] [--workers N]",
    """Pack a tree into shards, which are a few large files in place of many small ones.

    SRC is only read. DST gets tar archives in WebDataset's form, each with its index for DALI, and
    manifest.json. data.path takes DST in place of the tree: the same images come in the same order.
    Started again after a kill, it goes on. Exits with 1 if there are images that could not be read.
    """,
    ("/path/to/imagenet imagenet-shards", "data shards --images 10000"),
)
SPLIT = Parser(
    "prepare split",
    "SRC DST [--val PERCENT] [--seed N] [--copy] [--workers N]",
    """Split a folder of classes into train/ and val/, the same share of every class.

    SRC holds a folder of images for each class, or train/ with such, and is only read. DST gets
    links to the images. Started again after a kill, it goes on.
    """,
    ("photos data", "photos data --val 5 --seed 1 --copy"),
)
SPLIT.add_argument(
    "source", metavar="SRC", type=Path, help="the folder that holds the class folders, or train/"
)
VERIFY = Parser(
    "prepare verify",
    "DATA [--report FILE] [--workers N]",
    """List the images of a data tree, or of shards, that cannot be read.

    Decodes every image of train/, val/ and test/, whichever exist, and lists those that cannot be
    read in a report, which data.exclude takes as it is. DATA is only read. Started again, it looks
    only at images that are new, changed or bad. Exits with 1 if there are bad images.
    """,
    ("/path/to/imagenet", "/path/to/imagenet --report bad.txt --workers 16"),
)
PARSERS = {
    "imagenet": IMAGENET,
    "tiny_imagenet": TINY,
    "resize": RESIZE,
    "shard": SHARD,
    "split": SPLIT,
    "verify": VERIFY,
}


def percentage(text: str) -> float:
    """A number between 0 and 100, with or without a sign behind it."""
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?%?", text) or not float(text.rstrip("%")):
        raise argparse.ArgumentTypeError(f"{text} is no percentage above 0 and below 100")
    return float(text.rstrip("%"))


for _parser in (RESIZE, SHARD):
    _parser.add_argument(
        "source", metavar="SRC", type=Path, help="the folder that holds train/, val/ or test/"
    )
for _parser in (IMAGENET, TINY, RESIZE, SHARD, SPLIT):
    _parser.add_argument("target", metavar="DST", type=Path, help="the new folder, which is made")
for _parser, _side, _words in ((IMAGENET, None, "as they are"), (RESIZE, 256, "256")):
    _parser.add_argument(
        "--short-side", metavar="N", type=whole(1, 16384), default=_side,
        help=f"pixels of the shorter side of the images ({_words})",
    )  # fmt: skip
    _parser.add_argument(
        "--quality", metavar="Q", type=whole(1, 100), default=90,
        help="of the JPEGs that are made (%(default)s)",
    )  # fmt: skip
for _parser in (IMAGENET, TINY):
    _parser.add_argument(
        "--no-checksums", dest="checksums", action="store_false",
        help="do not compare with the official checksums, which reads everything once more",
    )  # fmt: skip
SHARD.add_argument(
    "--images", metavar="N", type=whole(1), default=1000,
    help="how many a shard holds (%(default)s)",
)  # fmt: skip
SPLIT.add_argument(
    "--val", metavar="PERCENT", type=percentage, default=10.0,
    help="how much of each class is for validation (10)",
)  # fmt: skip
SPLIT.add_argument(
    "--seed", metavar="N", type=whole(0), default=0, help="chooses which images (%(default)s)"
)
SPLIT.add_argument("--copy", action="store_true", help="copy the images in place of linking them")
VERIFY.add_argument("data", metavar="DATA", type=Path, help="the folder that data.path is to name")
VERIFY.add_argument(
    "--report", metavar="FILE", type=Path, default=Path("bad-images.txt"),
    help="the list to write, with what is remembered in FILE.state beside it (%(default)s)",
)  # fmt: skip
for _parser in PARSERS.values():
    _parser.add_argument(
        "--workers", metavar="N", type=whole(1, 1024), default=cores(),
        help="threads (one per core)",
    )  # fmt: skip


def imagenet(options: argparse.Namespace) -> int:
    """Make a tree of ImageNet's archives; returns how many images could not be read."""
    from pipeline.prepare.imagenet import make_imagenet

    return make_imagenet(
        options.archives, options.target, side=options.short_side, quality=options.quality,
        checksums=options.checksums, workers=options.workers,
    )  # fmt: skip


def tiny_imagenet(options: argparse.Namespace) -> int:
    """Make a tree of Tiny ImageNet's archive; returns how many images could not be read."""
    from pipeline.prepare.tiny_imagenet import make_tiny_imagenet

    return make_tiny_imagenet(
        options.archive, options.target, checksums=options.checksums, workers=options.workers
    )


def resize(options: argparse.Namespace) -> int:
    """Make a tree of small images; returns how many could not be read."""
    from pipeline.prepare.resize import resize_tree

    side, quality = options.short_side, options.quality
    return resize_tree(options.source, options.target, side, quality, options.workers)


def shard(options: argparse.Namespace) -> int:
    """Pack a tree; returns how many images could not be read."""
    from pipeline.prepare.shard import shard_tree

    return shard_tree(options.source, options.target, options.images, options.workers)


def split(options: argparse.Namespace) -> int:
    """Split a folder; no image is bad, since none is decoded."""
    from pipeline.prepare.split import split_tree

    split_tree(
        options.source, options.target, options.val, options.seed,
        copies=options.copy, workers=options.workers,
    )  # fmt: skip
    return 0


def verify(options: argparse.Namespace) -> int:
    """Verify a tree; returns the number of bad images."""
    from pipeline.prepare.verify import verify_tree

    return verify_tree(options.data, options.report, options.workers)


WORK = {
    "imagenet": imagenet,
    "tiny_imagenet": tiny_imagenet,
    "resize": resize,
    "shard": shard,
    "split": split,
    "verify": verify,
}


def _start(name: str, arguments: Sequence[str]) -> None:
    """Do the work called ``name``; exit with 1 if images are bad."""
    options = PARSERS[name].parse(arguments)
    from pipeline.run.console import start_console

    start_console()
    if WORK[name](options):
        raise SystemExit(1)


def main(arguments: Sequence[str]) -> None:
    """Do what ``arguments`` name."""
    choices = {name: (parser.summary, partial(_start, name)) for name, parser in PARSERS.items()}
    choose("prepare", __doc__ or "", choices, arguments)


if __name__ == "__main__":
    command(main)
