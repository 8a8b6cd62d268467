"""Splits a folder of classes into training and validation images, the same share of every class."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.tree import ImageFolder
from pipeline.prepare.ahead import in_order
from pipeline.prepare.fill import finish, tell, told, with_progress
from pipeline.prepare.source import check_apart, read_classes
from pipeline.prepare.target import Size, Target
from pipeline.run.errors import UserError


def split_tree(
    source: Path, folder: Path, percent: float, seed: int, *, copies: bool, workers: int
) -> None:
    """Make a tree of train/ and val/ in ``folder`` of the images in ``source``, by so many threads.

    ``percent`` of each class, chosen by ``seed``, are in val/, and the others in train/. They are
    links to the images in ``source``, or ``copies`` of them. Raises UserError, or Interrupted.
    """
    check_apart(source, folder)
    with told(folder):
        images = read_classes(_classes_in(source.resolve()))
        job = {
            "command": "prepare split", "source": str(source.resolve()), "val": percent,
            "seed": seed, "copies": copies, "fingerprint": images.fingerprint,
        }  # fmt: skip
        target = Target(folder, job)
        if not (target.has_begun() and target.finished()):
            _make(target, images, choose(images, percent, seed), copies, workers)
        tell(target)


def _classes_in(source: Path) -> Path:
    """The folder that holds the class folders. Raises UserError where there is a split."""
    if not (source / "train").is_dir():
        return source
    if (source / "val").is_dir():
        raise UserError(f"{source} is split already; train with data.path={source}")
    return source / "train"


def _make(
    target: Target, images: ImageFolder, chosen: list[bool], copies: bool, workers: int
) -> None:
    def put(pair: tuple[str, Path]) -> None:
        place, path = pair
        if not copies:
            target.link(place, path)
        elif not target.has(place, path.stat().st_size):
            target.write(place, path.read_bytes())

    target.begin()
    results = in_order(put, _places(images, chosen), workers)
    for _ in with_progress(results, len(chosen)):
        pass
    classes, val = len(images.classes), sum(chosen)
    sizes = {"train": Size(classes, len(chosen) - val), "val": Size(classes, val)}
    finish(target, sizes, [])


def _places(images: ImageFolder, chosen: list[bool]) -> Iterator[tuple[str, Path]]:
    """The place of each image in the new tree, and its path."""
    for name, is_val in zip(images.files, chosen, strict=True):
        split = "val" if is_val else "train"
        yield f"{split}/{name.partition('/')[2]}", images.root / name


def choose(images: ImageFolder, percent: float, seed: int) -> list[bool]:
    """Which of the images are for validation: ``percent`` of each class, rounded, but at least one
    and not all.

    They are those whose digest of seed and name is smallest, so that a few new images change the
    choice of few others. Raises UserError for a class of one image.
    """
    chosen = [False] * len(images.files)
    bounds = np.searchsorted(images.labels, range(len(images.classes) + 1)).tolist()
    for start, end in zip(bounds, bounds[1:], strict=False):
        if end - start == 1:
            raise UserError(
                f"{images.root / images.files[start]} is the only image of its class, which cannot "
                "be split; add others, or remove the class"
            )
        count = min(max(round((end - start) * percent / 100), 1), end - start - 1)
        ranked = sorted(range(start, end), key=lambda i: _digest(images.files[i], seed))
        for index in ranked[:count]:
            chosen[index] = True
    return chosen


def _digest(name: str, seed: int) -> bytes:
    within = name.partition("/")[2]
    return hashlib.sha256(f"{seed}/".encode() + os.fsencode(within)).digest()
