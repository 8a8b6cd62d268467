"""Makes a tree of the archive of Tiny ImageNet: 200 classes of ImageNet, 64 pixels a side.

The archive has no classes for test/, and its validation images lie in one folder, beside a file
that names the class of each.
"""

import contextlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.prepare.archives import compare, state_of
from pipeline.prepare.fill import Item, fill, finish, tell, told
from pipeline.prepare.shrink import Unreadable
from pipeline.prepare.target import Size, Target
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

ORIGIN = "cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
ROOT = "tiny-imagenet-200"
TRAIN = re.compile(rf"{ROOT}/train/(n\d{{8}})/images/(\1_\d+\.JPEG)")
VAL = re.compile(rf"{ROOT}/val/images/(val_\d+\.JPEG)")
CLASSES, WORDS = f"{ROOT}/val/val_annotations.txt", f"{ROOT}/words.txt"
LARGEST = 2**24  # bytes of a file in it


class Found(NamedTuple):
    """An image in the archive: where, of which split and class, and under which name."""

    member: zipfile.ZipInfo
    split: str
    wnid: str
    name: str


def make_tiny_imagenet(archive: Path, into: Path, *, checksums: bool, workers: int) -> int:
    """Make a tree in ``into`` of ``archive``, by so many threads; returns how many images could not
    be read. Raises UserError, or Interrupted."""
    with told(into):
        job = {
            "command": "prepare tiny_imagenet", "source": str(archive.resolve()),
            "checksums": checksums, "archive": state_of(archive),
        }  # fmt: skip
        target = Target(into, job)
        if not (target.has_begun() and target.finished()):
            if checksums and not target.has_begun():
                compare({archive: MD5}, ORIGIN)
            with _opened(archive) as source:
                _make(target, source, archive, workers)
        return tell(target)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as source:
            yield source
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not the archive of Tiny ImageNet, or is damaged ({reason}); fetch it again "
            f"from {ORIGIN}"
        ) from None


def _make(target: Target, source: zipfile.ZipFile, path: Path, workers: int) -> None:
    """Nothing is written before every image is known to have its class."""
    found = _survey(source, path)
    counts = Counter((each.split, each.wnid) for each in found)
    words = _words(source, {wnid for _, wnid in counts})
    target.begin()
    items = (
        Item(name, name, each.member.file_size, partial(_content, source, each.member))
        for each in found
        for name in (f"{each.split}/{each.wnid}/{each.name}",)
    )
    bad = fill(target, items, len(found), workers)
    target.write_json("classes.json", words)
    finish(target, {split: _size(counts, split) for split in ("train", "val")}, bad)


def _size(counts: Counter[tuple[str, str]], split: str) -> Size:
    images = [count for (where, _), count in counts.items() if where == split]
    return Size(len(images), sum(images))


def _survey(source: zipfile.ZipFile, path: Path) -> list[Found]:
    """All images with their classes. Raises UserError where an image has none, or where the splits
    do not have the same classes."""
    classes = dict(line.split("\t")[:2] for line in _lines(source, CLASSES))
    found = []
    for member in source.infolist():
        if train := TRAIN.fullmatch(member.filename):
            found.append(Found(member, "train", *train.groups()))
        elif val := VAL.fullmatch(member.filename):
            found.append(Found(member, "val", classes.get(val[1], ""), val[1]))
    train_classes, val_classes = (
        {each.wnid for each in found if each.split == split} for split in ("train", "val")
    )
    if odd := sorted(train_classes ^ val_classes):
        what = f"the class {odd[0]} in one split only" if odd[0] else "an image without a class"
        raise UserError(f"{path} has {what}; fetch it again from {ORIGIN}")
    return found


def _words(source: zipfile.ZipFile, wnids: set[str]) -> dict[str, str]:
    """What the classes are called."""
    named = dict(line.split("\t")[:2] for line in _lines(source, WORDS))
    return {wnid: named.get(wnid, wnid) for wnid in sorted(wnids)}


def _lines(source: zipfile.ZipFile, name: str) -> list[str]:
    lines = _read(source, source.getinfo(name)).decode().splitlines()
    return [line for line in lines if "\t" in line]


def _content(source: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return _read(source, member)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable(str(error)) from None


def _read(source: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The content of a member, which is held against its checksum."""
    if member.file_size > LARGEST:
        raise zipfile.BadZipFile(f"{member.filename} is larger than {LARGEST} bytes")
    return source.read(member)
