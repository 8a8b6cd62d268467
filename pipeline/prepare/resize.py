"""Makes a tree of small JPEGs out of any tree, for trainings that decode less."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pipeline.data.tree import ImageFolder
from pipeline.prepare.fill import Item, fill, finish, keep_words, tell, told
from pipeline.prepare.shrink import Unreadable, shrunk
from pipeline.prepare.source import check_apart, read_splits
from pipeline.prepare.target import Size, Target
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")


def resize_tree(source: Path, folder: Path, side: int, quality: int, workers: int) -> int:
    """Make a tree in ``folder`` of the images in ``source``, with shorter sides of ``side`` pixels,
    by so many threads; returns how many could not be read. Raises UserError, or Interrupted."""
    check_apart(source, folder)
    with told(folder):
        found = read_splits(source)
        job = {
            "command": "prepare resize", "source": str(source.resolve()), "short_side": side,
            "quality": quality,
            "fingerprints": {split: each.fingerprint for split, each in found.items()},
        }  # fmt: skip
        target = Target(folder, job)
        if not (target.has_begun() and target.finished()):
            _make(target, source, found, partial(_small, side=side, quality=quality), workers)
        return tell(target)


def _make(
    target: Target,
    source: Path,
    found: Mapping[str, ImageFolder],
    small: "partial[bytes]",
    workers: int,
) -> None:
    sizes = {split: Size(len(each.classes), len(each.files)) for split, each in found.items()}
    total = sum(1 for _ in _items(found, small))  # names that meet are found before the work
    target.begin()
    keep_words(source, target)
    bad = fill(target, _items(found, small), total, workers)
    finish(target, sizes, bad)


def _items(found: Mapping[str, ImageFolder], small: "partial[bytes]") -> Iterator[Item]:
    for images in found.values():
        for name in images.files:
            path = f"{images.root}/{name}"
            yield Item(_place(path, name), name, None, partial(small, path))


def _place(path: str, name: str) -> str:
    """The name of an image in the new tree: a PNG becomes a JPEG. Raises UserError where another
    image has that name."""
    if name.lower().endswith(JPEG_ENDINGS):
        return name
    if os.path.lexists(f"{path}.jpg"):
        raise UserError(f"{path} becomes {name}.jpg, which is there too; rename one of them")
    return f"{name}.jpg"


def _small(path: str, side: int, quality: int) -> bytes:
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise Unreadable(error.strerror) from None
    return shrunk(content, side, quality)
