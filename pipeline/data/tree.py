"""Which images a data set in ImageNet's layout holds.

The layout is ``<data.path>/train/<class>/*.JPEG`` and ``<data.path>/val/<class>/*.JPEG``.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import exclude
from pipeline.data.draws import Ints
from pipeline.run.errors import UserError

_CODEC = ("utf-8", "surrogateescape")  # file names are bytes, whatever they look like

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, sorted by class and name; nothing of them is read yet."""

    root: Path
    classes: tuple[str, ...]  # names of the class folders, sorted
    files: list[str]  # relative to root, "/" between the parts
    labels: Ints  # (len(files),), indices into classes
    fingerprint: str  # sha256 over the names and sizes of the files

    def paths(self, indices: Iterable[int]) -> list[str]:
        return [f"{self.root}/{self.files[i]}" for i in indices]


def scan(root: Path, split: str, excluded: str | None = None) -> ImageFolder:
    """List the images below ``root/split/<class>/``, at any depth. Hidden files and files of
    other endings are ignored, links are followed. ``excluded``: a list (see exclude.py) of images
    to leave out; those of this split must be there."""
    try:
        return _scan(root, split, excluded)
    except OSError as error:
        raise UserError(
            f"data.path: cannot read {error.filename}: {error.strerror}; repair or remove it"
        ) from error


def scan_train_val(root: Path, excluded: str | None = None) -> tuple[ImageFolder, ImageFolder]:
    """Both splits of a data set; they must have the same classes."""
    train, val = scan(root, "train", excluded), scan(root, "val", excluded)
    check_same_classes(root, {"train": train.classes, "val": val.classes})
    return train, val


def check_same_classes(root: Path, classes: Mapping[str, Collection[str]]) -> None:
    """Raise UserError unless the two splits of ``classes`` have the same class folders."""
    (a, ours), (b, theirs) = classes.items()
    differences = [
        f"only in {split}/: {_some(names)}"
        for split, names in ((a, sorted({*ours} - {*theirs})), (b, sorted({*theirs} - {*ours})))
        if names
    ]
    if differences:
        raise UserError(
            f"data.path: the class folders of {a}/ and {b}/ under {root} differ "
            f"({'; '.join(differences)}); give both the same class folders"
        )


def walk(root: Path, split: str) -> Iterator[str]:
    """The names that ``scan`` lists, in its order, one class folder at a time.

    Here it is no error if there are no class folders, or an empty one.
    """
    for name in class_folders(root / split):
        yield from sorted(file for file, _ in _images(root, f"{split}/{name}"))


def _scan(root: Path, split: str, excluded: str | None) -> ImageFolder:
    classes = _class_names(root, split)
    listed = exclude.read(excluded, split)
    missing = set(listed)
    files: list[str] = []
    counts = []
    digest = hashlib.sha256()
    for name in classes:
        entries = dict(_images(root, f"{split}/{name}"))
        missing.difference_update(entries)
        found = [
            (file, entries[file].stat().st_size) for file in sorted(entries) if file not in listed
        ]
        if not found:
            raise _no_images(root / split / name, excluded if entries else None)
        files += [file for file, _ in found]
        counts.append(len(found))
        digest.update("".join(f"{file}\0{size}\n" for file, size in found).encode(*_CODEC))
    if missing:
        raise UserError(
            f"data.exclude={excluded}: {exclude.printable(min(missing))} is no image under {root}; "
            "correct or remove that line, or verify the data again"
        )
    labels = np.repeat(np.arange(len(classes)), counts)
    return ImageFolder(root, tuple(classes), files, labels, digest.hexdigest())


def _no_images(folder: Path, excluded: str | None) -> UserError:
    """The error for a class folder without images; ``excluded`` names the list that left none of
    them, if there were some."""
    if excluded is not None:
        return UserError(
            f"data.exclude={excluded} leaves no images in the class folder {folder}; add good ones"
        )
    return UserError(
        f"data.path: no images in the class folder {folder}; add some "
        f"({' '.join(ENDINGS)}) or remove the folder"
    )


def _class_names(root: Path, split: str) -> list[str]:
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.path: {root} {state}; give the folder that holds {layout}")
    if not (root / split).is_dir():
        raise UserError(f"data.path: {root} has no folder {split}/; it must hold {layout}")
    names = class_folders(root / split)
    if not names:
        raise UserError(
            f"data.path: {root / split} holds no class folders, so no images; sort the images "
            f"into {split}/<class>/"
        )
    return names


def class_folders(path: Path) -> list[str]:
    """The names of the class folders in that of a split, sorted; hidden ones are none."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(root: Path, folder: str) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """The images below one class folder by their names relative to root, unsorted."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(root, name)
            elif entry.name.lower().endswith(ENDINGS):
                yield name, entry


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
