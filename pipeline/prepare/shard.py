"""Packs a tree into shards: tar archives in WebDataset's form, few files in place of many.

pipeline/data/shards.py describes the form. Which images a shard holds depends on their numbers
alone, so that one which is there after a kill is kept as it is.
"""

import io
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.data.image import reason, unreadable
from pipeline.data.plan import permutation
from pipeline.data.shards import COMMAND, NAMES, read_index, read_split
from pipeline.data.tree import ImageFolder
from pipeline.prepare.ahead import in_order
from pipeline.prepare.fill import (
    Bad,
    check_classes,
    conclude,
    keep_words,
    quiet,
    tell,
    told,
    with_progress,
)
from pipeline.prepare.pack import Shard
from pipeline.prepare.resize import JPEG_ENDINGS
from pipeline.prepare.source import check_apart, read_splits
from pipeline.prepare.target import Size, Target

SEED = 0  # of the order in which the shards hold training images


def shard_tree(source: Path, folder: Path, images: int, workers: int) -> int:
    """Pack the tree ``source`` into shards of so many ``images`` in ``folder``, by so many threads;
    returns how many images could not be read. Raises UserError, or Interrupted."""
    check_apart(source, folder)
    with told(folder):
        found = read_splits(source)
        job = {
            "command": COMMAND, "source": str(source.resolve()), "images_per_shard": images,
            "fingerprints": {split: each.fingerprint for split, each in found.items()},
        }  # fmt: skip
        target = Target(folder, job)
        if not (target.has_begun() and target.finished()):
            target.begin()
            keep_words(source, target)
            _make(target, found, images, workers)
        return tell(target)


def _make(target: Target, found: Mapping[str, ImageFolder], images: int, workers: int) -> None:
    results = _results(target, found, images, workers)
    with quiet():
        bad = [each for each in with_progress(results, sum(map(_count, found.values()))) if each]
    if bad:
        left = {split: read_split(target.growing, split).classes for split in found}
        kept = {f"{split}/{name}" for split, classes in left.items() for name in classes}
        check_classes(bad, kept.__contains__)
    sizes = {split: Size(len(each.classes), _count(each)) for split, each in found.items()}
    conclude(target, sizes, bad, read_split)


def _count(folder: ImageFolder) -> int:
    return len(folder.files)


class _Look(NamedTuple):
    """What there is to know of an image before it is packed."""

    number: int
    content: bytes
    bad: Bad | None


def _results(
    target: Target, found: Mapping[str, ImageFolder], images: int, workers: int
) -> Generator[Bad | None, None, None]:
    """Make all shards; there is a result for each image, in no order."""
    for split, folder in found.items():
        target.write_json(f"{split}/{NAMES}", folder.files)
        order = np.arange(_count(folder))
        if split == "train":
            order = permutation(SEED, 0, len(order))
        for number, start in enumerate(range(0, len(order), images)):
            chosen = order[start : start + images].tolist()
            yield from _shard(target, folder, f"{split}/{number:06}", chosen, workers)


def _shard(
    target: Target, folder: ImageFolder, name: str, chosen: list[int], workers: int
) -> Generator[Bad | None, None, None]:
    """Make a shard of the ``chosen`` images, unless it is there with all that can be read."""
    there = _numbers(target.growing / f"{name}.tar")
    missing = (
        [_look(folder, number).bad for number in chosen if number not in there] if there else []
    )
    if there and all(missing):
        yield from [*missing, *(None for _ in there)]
    else:
        yield from _pack(target, folder, name, chosen, workers)


def _numbers(archive: Path) -> set[int]:
    """The images in a shard; none where it, or its index, is not there as a whole."""
    try:
        return {*read_index(archive)[:, 0].tolist()}
    except (OSError, ValueError):
        return set()


def _pack(
    target: Target, folder: ImageFolder, name: str, chosen: list[int], workers: int
) -> Generator[Bad | None, None, None]:
    archive, index = f"{name}.tar", f"{name}.idx"
    target.remove(index)  # it tells of another archive
    looks = in_order(partial(_look, folder), chosen, workers)
    with closing(looks), target.writing(archive) as file:
        shard = Shard(file)
        for number, content, bad in looks:
            if not bad:
                ending = _ending(folder.files[number])
                shard.add(number, ending, content, int(folder.labels[number]))
            yield bad
        shard.end()
    if shard.lines:
        target.write(index, shard.index())
    else:
        target.remove(archive)  # some readers refuse one without images


def _look(folder: ImageFolder, number: int) -> _Look:
    name = folder.files[number]
    try:
        with folder.store.open(number, name) as file:
            content = file.read()
    except OSError as error:
        return _Look(number, b"", Bad(name, reason(error)))
    why = unreadable(partial(io.BytesIO, content))
    return _Look(number, content, Bad(name, why) if why else None)


def _ending(name: str) -> str:
    """What an image is called behind its number."""
    ending = os.path.splitext(name)[1].lower()
    return "jpg" if ending in JPEG_ENDINGS else ending[1:]
