"""Image trees of any size for benchmarks, built from a few images: as they are, made smaller, and
in shards."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.tree import ImageFolder
from pipeline.prepare.resize import resize_tree
from pipeline.prepare.shard import shard_tree
from pipeline.prepare.source import read_classes
from pipeline.run.errors import UserError

QUALITY, PER_SHARD = 90, 1000  # as prepare has them by default
VAL_SHARE = 20  # training images for each validation image


def given_images(path: str | None) -> ImageFolder:
    """The training images of the tree at ``path``, or the images of the class folders there.
    Raises UserError where there are none."""
    if path is None:
        raise UserError("data.path is not set: give a folder with images in class folders (DATA=)")
    root = Path(path).resolve()
    return read_classes(root / "train" if (root / "train").is_dir() else root)


def raw_tree(folder: Path, given: ImageFolder, count: int) -> Path:
    """Make the tree ``raw`` in ``folder``, with ``count`` training images or one of each class, of
    links to the ``given`` ones, each as often as need be; its validation images are fewer."""
    classes = len(given.classes)
    for split, images in (("train", count), ("val", count // VAL_SHARE)):
        for number, name in enumerate(_turns(given, max(images, classes))):
            link = folder / "raw" / split / _renamed(name, number)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(given.root / name)
    return folder / "raw"


def smaller_trees(raw: Path, side: int, workers: int) -> dict[str, Path]:
    """The tree ``raw`` and what ``prepare`` makes of it: small images, and shards of these."""
    resized, sharded = raw.with_name("resized"), raw.with_name("sharded")
    resize_tree(raw, resized, side, QUALITY, workers)
    shard_tree(resized, sharded, PER_SHARD, workers)
    return {tree.name: tree for tree in (raw, resized, sharded)}


def _turns(given: ImageFolder, count: int) -> Iterator[str]:
    """``count`` names, one of each class in turn, and of each class one image after the other."""
    of_class: dict[int, list[str]] = {}
    for name, label in zip(given.files, given.labels.tolist(), strict=True):
        of_class.setdefault(label, []).append(name)
    turns = zip(*map(itertools.cycle, of_class.values()), strict=True)
    return itertools.islice(itertools.chain.from_iterable(turns), count)


def _renamed(name: str, number: int) -> str:
    """<class>/<number>_<file> for an image <split>/<class>/.../<file>."""
    parts = name.split("/")
    return f"{parts[1]}/{number:07}_{parts[-1]}"
