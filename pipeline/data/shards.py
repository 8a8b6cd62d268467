"""Which images a data set in shards holds: tar archives in WebDataset's form, which ``prepare
shard`` makes of a tree.

    manifest.json                  the last file to be there; the fingerprint of each split
    train/names.json               the names that all images have in the tree, in their order there
    train/000000.tar, ...          of each image <number>.jpg (or .png, ...) and <number>.cls: its
                                   place in that order, from 0, and its label
    train/000000.idx, ...          where these lie in it, as DALI's fn.readers.webdataset reads it

The images and their order are those of the tree, whichever lies where: the shards of training
images are mixed, for readers that go through them from end to end.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import exclude
from pipeline.data.draws import Ints
from pipeline.data.store import Archives, Store
from pipeline.data.tree import ImageFolder, check_listed, check_not_emptied, described
from pipeline.run.commands import command_line
from pipeline.run.errors import UserError
from pipeline.run.files import open_file
from pipeline.run.problems import Problems

COMMAND = "prepare shard"  # what the manifest calls it
MANIFEST, NAMES = "manifest.json", "names.json"
INDEX_HEAD = "v1.2"
BLOCK = 512  # bytes; an archive consists of such, and ends with two of zeros
_NOWHERE = -1  # the archive of an image that is in none


@dataclass(frozen=True)
class ShardFolder(ImageFolder):
    """The images of one split, in the order of the tree that the shards were made of."""

    archives: tuple[Path, ...]
    places: Ints  # see store.Archives

    @property
    def store(self) -> Store:
        return Archives(self.root, self.archives, self.places)


def is_sharded(root: Path) -> bool:
    """Whether ``root`` holds shards and not a tree."""
    return _fingerprints(root) is not None


def scan_shards(
    root: Path, split: str, excluded: str | None = None, problems: Problems | None = None
) -> ShardFolder:
    """The images of a split, as ``tree.scan`` gives those of a tree, and with its arguments.

    Raises UserError where the shards are not whole.
    """
    own = problems or Problems(local=True)
    folder = ShardFolder(root, (), [], np.zeros(0, np.int64), "", (), np.zeros((0, 3), np.int64))
    with own.noted():
        folder = _scan(root, split)
        if excluded is not None:
            folder = _without(folder, split, excluded)
    if problems is None:
        own.raise_all()
    return folder


def read_split(root: Path, split: str) -> ShardFolder:
    """What the indices of a split say. Raises OSError where a file is missing, and ValueError where
    one is not as it was made."""
    names = [*map(str, _json(root / split / NAMES))]
    archives = tuple(sorted((root / split).glob("*.tar")))
    places = np.full((len(names), 3), _NOWHERE)
    for number, archive in enumerate(archives):
        found = read_index(archive)
        places[found[:, 0]] = np.insert(found[:, 1:], 0, number, axis=1)
    return _chosen(root, archives, names, places, np.flatnonzero(places[:, 0] != _NOWHERE))


def read_index(archive: Path) -> Ints:
    """The images of an archive, (N, 3): number, first byte and size of each. Raises OSError and
    ValueError as ``read_split`` does."""
    with open_file(archive.with_suffix(".idx")) as file:
        head, *lines = file.read().decode().splitlines()
    words = [line.split() for line in lines]  # kind, start, size and name of image and label
    end = max((int(word[5]) + int(word[6]) for word in words), default=0)
    whole = -(-end // BLOCK) * BLOCK + 2 * BLOCK
    if head != f"{INDEX_HEAD} {len(words)}" or archive.stat().st_size != whole:
        raise ValueError(f"{archive} or its index is cut short, or altered")
    found = [(int(word[3].partition(".")[0]), int(word[1]), int(word[2])) for word in words]
    return np.array(found, np.int64).reshape(-1, 3)


def _scan(root: Path, split: str) -> ShardFolder:
    expected = _fingerprints(root)
    make = command_line(*COMMAND.split())
    if expected is None:
        raise UserError(
            f"data.path: {root} holds no shards; set data.format=folder for a tree, or make shards "
            f"of one: {make} TREE SHARDS"
        )
    if split not in expected:
        raise UserError(
            f"data.path: the shards in {root} have no {split}/; make them of a tree that has one: "
            f"{make} TREE SHARDS"
        )
    try:
        folder, why = read_split(root, split), "its images are not those of the manifest"
        if folder.fingerprint == expected[split]:
            return folder
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    except (LookupError, TypeError, ValueError) as error:
        why = str(error)
    raise UserError(
        f"data.path: {root / split} is not whole ({why}); copy it anew, or make the shards again: "
        f"{make} TREE SHARDS"
    )


def _fingerprints(root: Path) -> dict[str, str] | None:
    """The fingerprint of each split; None where the folder holds no shards."""
    try:
        manifest = _json(root / MANIFEST)
        if manifest["command"] != COMMAND:
            return None
        return {split: facts["fingerprint"] for split, facts in manifest["splits"].items()}
    except (OSError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _without(folder: ShardFolder, split: str, excluded: str) -> ShardFolder:
    """``folder`` without the images in the list ``excluded``."""
    listed = exclude.read(excluded, split, folder.root)
    check_listed(folder.root, listed - {*folder.files}, excluded)
    kept = [index for index, name in enumerate(folder.files) if name not in listed]
    left = _chosen(folder.root, folder.archives, folder.files, folder.places, np.array(kept, int))
    emptied = sorted({*folder.classes} - {*left.classes})
    check_not_emptied(folder.root / split, emptied, excluded)
    return left


def _chosen(
    root: Path, archives: tuple[Path, ...], names: Sequence[str], places: Ints, kept: Ints
) -> ShardFolder:
    """The folder of those of the images that are ``kept``."""
    files, places = [names[index] for index in kept], places[kept]
    of_files = [name.split("/")[1] for name in files]
    classes = sorted({*of_files})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in of_files], np.int64)
    digest = hashlib.sha256(described(zip(files, places[:, 2].tolist(), strict=True))).hexdigest()
    return ShardFolder(root, tuple(classes), files, labels, digest, archives, places)


def _json(path: Path) -> Any:
    with open_file(path) as file:
        return json.load(file)
