"""Which images a data set in ImageNet's layout holds.

The layout is ``<data.path>/train/<class>/*.JPEG`` and ``<data.path>/val/<class>/*.JPEG``.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import exclude
from pipeline.data.draws import Ints
from pipeline.data.image import bad_image
from pipeline.run.console import logger
from pipeline.run.errors import UserError

_CODEC = ("utf-8", "surrogateescape")  # file names are bytes, whatever they look like

# Of images; they say nothing about the format, which is told by the content.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".j2k",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Folders of thumbnails and metadata that some systems put beside the images.
LITTER = {"@eadir", "__macosx"}


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
    """List the images below ``root/split/<class>/``, at any depth; links are followed.

    Hidden files, files of other endings and files outside of class folders are left out, and a
    line counts them. ``excluded``: a list (see exclude.py) of images to leave out; those of this
    split must be there.
    """
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


def walk(root: Path, split: str, left_out: Counter[str]) -> Iterator[str]:
    """The names that ``scan`` lists, in its order, one class folder at a time; ``left_out`` counts
    what is none of them.

    Here it is no error if there are no class folders, or an empty one, or if what has the name of
    an image is no file.
    """
    for name in class_folders(root / split, left_out):
        yield from sorted(file for file, _ in _images(root, f"{split}/{name}", left_out))


def tell_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Say in one line what in a split's folder is left out, if anything is."""
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        logger.info("%s: left out as no images in class folders: %s", folder, kinds)


def _scan(root: Path, split: str, excluded: str | None) -> ImageFolder:
    left_out = Counter[str]()
    classes = _class_names(root, split, left_out)
    listed = exclude.read(excluded, split)
    missing = set(listed)
    files: list[str] = []
    counts = []
    digest = hashlib.sha256()
    for name in classes:
        entries = dict(_images(root, f"{split}/{name}", left_out))
        missing.difference_update(entries)
        found = [
            (file, _size(root, file, entries[file])) for file in sorted(entries.keys() - listed)
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
    tell_left_out(root / split, left_out)
    labels = np.repeat(np.arange(len(classes)), counts)
    return ImageFolder(root, tuple(classes), files, labels, digest.hexdigest())


def _size(root: Path, name: str, entry: "os.DirEntry[str]") -> int:
    """The size of an image file; raises UserError for a pipe or device, which cannot be read."""
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        raise bad_image(root, name, "not a regular file")
    return status.st_size


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


def _class_names(root: Path, split: str, left_out: Counter[str]) -> list[str]:
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.path: {root} {state}; give the folder that holds {layout}")
    if not (root / split).is_dir():
        raise UserError(f"data.path: {root} has no folder {split}/; it must hold {layout}")
    names = class_folders(root / split, left_out)
    if not names:
        raise UserError(
            f"data.path: {root / split} holds no class folders, so no images; sort the images "
            f"into {split}/<class>/"
        )
    return names


def class_folders(path: Path, left_out: Counter[str]) -> list[str]:
    """The names of the class folders in that of a split, sorted; hidden ones are none.

    ``left_out`` counts what else there is.
    """
    names = []
    with os.scandir(path) as entries:
        for entry in _visible(entries, left_out):
            if entry.is_dir():
                names.append(entry.name)
            else:
                left_out[_ending(entry.name)] += 1
    return sorted(names)


def _images(
    root: Path, folder: str, left_out: Counter[str]
) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """The images below one class folder by their names relative to root, unsorted."""
    with os.scandir(root / folder) as entries:
        for entry in _visible(entries, left_out):
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from _images(root, name, left_out)
            elif entry.name.lower().endswith(ENDINGS):
                yield name, entry
            else:
                left_out[_ending(entry.name)] += 1


def _visible(
    entries: "Iterable[os.DirEntry[str]]", left_out: Counter[str]
) -> "Iterator[os.DirEntry[str]]":
    """The entries of a folder that are neither hidden nor litter; the others are counted."""
    for entry in entries:
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.name.lower() in LITTER:
            left_out[f"{entry.name}/"] += 1
        else:
            yield entry


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without ending"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
