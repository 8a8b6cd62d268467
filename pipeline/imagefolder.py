"""A data set in ImageNet's layout, and what its two loaders (dali.py, torchvision_loader.py) share.

<data.path>/train/<class>/*.JPEG    <data.path>/val/<class>/*.JPEG
"""

import abc
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pipeline import distributed, exclude
from pipeline.augment import Ints, Plan, Position
from pipeline.data import Batch
from pipeline.errors import UserError

_CODEC = ("utf-8", "surrogateescape")  # file names are bytes, whatever they look like
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Whatever a file is called. Those that DALI knows; Pillow would run Ghostscript for an EPS file.
FORMATS = ("JPEG", "JPEG2000", "PNG", "PPM", "BMP", "TIFF", "WEBP")
VERIFY = "python -m launch.prepare verify finds all such, data.exclude leaves them out"


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
    differences = [
        f"only in {split}/: {_some(sorted(set(here.classes) - set(there.classes)))}"
        for split, here, there in (("train", train, val), ("val", val, train))
        if set(here.classes) - set(there.classes)
    ]
    if differences:
        raise UserError(
            f"data.path: the class folders of train/ and val/ under {root} differ "
            f"({'; '.join(differences)}); give both the same class folders"
        )
    return train, val


def walk(root: Path, split: str) -> Iterator[str]:
    """The names that ``scan`` lists, in its order, one class folder at a time; no class folders
    or an empty one are no error."""
    for name in _folders(root / split):
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
    """``excluded``: the list that left none, if there were any."""
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
    names = _folders(root / split)
    if not names:
        raise UserError(
            f"data.path: {root / split} holds no class folders, so no images; sort the images "
            f"into {split}/<class>/"
        )
    return names


def _folders(path: Path) -> list[str]:
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


def open_rgb(path: str) -> Image.Image:
    """Decode an image file completely, without regard to an EXIF orientation, as RGB.

    A file that cannot be read, whatever the reason, is a UserError that names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _rgb(image)
    except Exception as error:
        raise _bad_image(path, _reason(error)) from error


def unreadable(path: str) -> str | None:
    """Why a loader may fail on an image file, in one line, or None if all of it can be decoded.

    Data that decoders guess from, such as bits that changed within a JPEG, are not noticed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a regular file"  # to open a pipe would wait
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (1, 1))  # reads a JPEG to its end, but computes few of its pixels
            _rgb(image)
        if image.format == "PNG":
            _check_png(path)
    except Exception as error:
        return _reason(error)
    return None


def first_unreadable(paths: Iterable[str]) -> UserError | None:
    """The error that names the first of these files that cannot be decoded."""
    for path in paths:
        if reason := unreadable(path):
            return _bad_image(path, reason)
    return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _check_png(path: str) -> None:
    """Raise unless a PNG is whole to its last chunk: DALI refuses one that only has its pixels."""
    with open(path, "rb") as file, Image.open(file, formats=["PNG"]) as image:
        image.verify()
        if len(file.read(4)) < 4:  # the last checksum, which Pillow does not look at
            raise OSError("image file is truncated")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _bad_image(path: str, reason: str) -> UserError:
    return UserError(
        f"data.path: cannot read the image {path} ({reason}); replace or remove it ({VERIFY})"
    )


class FolderLoader(abc.ABC):
    """A ``Loader`` (see data.py) of an image folder; the subclasses differ in who decodes.

    Training sees a random resized crop and flip of every image if ``augment``; otherwise, and in
    evaluation, the short side is resized to ``resize`` pixels and the central square of ``size``
    pixels taken. Batches are read ahead in an endless stream of positions, across the ends of
    epochs; asking for a position out of turn restarts the stream there.
    """

    def __init__(
        self,
        folder: ImageFolder,
        *,
        batch_size: int,
        train: bool,
        size: int,
        resize: int,
        min_area: float,
        augment: bool,
        seed: int,
        workers: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert resize >= size and dtype in (torch.float16, torch.float32, torch.float64)
        self.folder, self.size, self.resize = folder, size, resize
        self.min_area, self.random = min_area, train and augment
        self.workers, self.dtype, self.device = workers, dtype, device
        share = distributed.rank(), distributed.size()
        self.plan = Plan(len(folder.files), batch_size, train, seed, *share)
        if not len(self.plan):
            raise UserError(
                f"data.batch_size: {batch_size} is more than the {len(folder.files)} training "
                f"images under {folder.root}; lower it"
            )
        self.classes, self.fingerprint = folder.classes, folder.fingerprint
        self.images = len(self.plan) * batch_size if train else len(folder.files)
        self._stream: Any = None  # what delivers the batches, read ahead
        self._upcoming: Position | None = None  # the position it delivers next

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of an epoch; evaluation has but one epoch."""
        for batch in range(start, self.plan.batches):
            yield self._batch((epoch if self.plan.train else 0, batch))

    def _batch(self, position: Position) -> Batch:
        if position != self._upcoming:
            self._stream = None  # ends before the next one asks for memory
            self._stream = self._open(position)
        self._upcoming = None
        try:
            batch = self._read()
        except BaseException:
            self._stream = None  # ends here, not when the exception is forgotten
            raise
        self._upcoming = self.plan.following(position)
        return batch

    @abc.abstractmethod
    def _open(self, position: Position) -> Any:
        """A stream of all batches from ``position`` on."""

    @abc.abstractmethod
    def _read(self) -> Batch:
        """The stream's next batch."""
