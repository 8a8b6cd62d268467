"""A data set in ImageNet's layout, and what its two loaders (dali.py, torchvision_loader.py) share.

<data.path>/train/<class>/*.JPEG    <data.path>/val/<class>/*.JPEG
"""

import abc
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline import distributed
from pipeline.augment import Ints, Plan, Position
from pipeline.data import Batch
from pipeline.errors import UserError

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


def scan(root: Path, split: str) -> ImageFolder:
    """List the images below ``root/split/<class>/``, at any depth. Hidden files and files of
    other endings are ignored, links are followed."""
    try:
        return _scan(root, split)
    except OSError as error:
        raise UserError(
            f"data.path: cannot read {error.filename}: {error.strerror}; repair or remove it"
        ) from error


def scan_train_val(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """Both splits of a data set; they must have the same classes."""
    train, val = scan(root, "train"), scan(root, "val")
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


def _scan(root: Path, split: str) -> ImageFolder:
    classes = _class_names(root, split)
    files: list[str] = []
    counts = []
    digest = hashlib.sha256()
    for name in classes:
        found = sorted(_images(root, f"{split}/{name}"))
        if not found:
            raise UserError(
                f"data.path: no images in the class folder {root / split / name}; add some "
                f"({' '.join(ENDINGS)}) or remove the folder"
            )
        files += [file for file, _ in found]
        counts.append(len(found))
        digest.update("".join(f"{file}\0{size}\n" for file, size in found).encode(*_CODEC))
    labels = np.repeat(np.arange(len(classes)), counts)
    return ImageFolder(root, tuple(classes), files, labels, digest.hexdigest())


def _class_names(root: Path, split: str) -> list[str]:
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.path: {root} {state}; give the folder that holds {layout}")
    if not (root / split).is_dir():
        raise UserError(f"data.path: {root} has no folder {split}/; it must hold {layout}")
    with os.scandir(root / split) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(
            f"data.path: {root / split} holds no class folders, so no images; sort the images "
            f"into {split}/<class>/"
        )
    return names


def _images(root: Path, folder: str) -> Iterator[tuple[str, int]]:
    """(name relative to root, size in bytes) of the images below one class folder, unsorted."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(root, name)
            elif entry.name.lower().endswith(ENDINGS):
                yield name, entry.stat().st_size


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def open_rgb(path: str) -> Image.Image:
    """Decode an image file completely, without regard to an EXIF orientation, as RGB.

    A file that cannot be read, whatever the reason, is a UserError that names it.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # convert would clip at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.path: cannot read the image {path} ({reason}); replace or remove it"
        ) from error


def first_unreadable(paths: Iterable[str]) -> UserError | None:
    """The error that names the first of these files that cannot be decoded."""
    for path in paths:
        try:
            open_rgb(path)
        except UserError as error:
            return error
    return None


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
