"""CIFAR-10 as uint8 on the training device: shuffled, cropped, flipped and normalised there.

No workers, no queues: 50 000 images are 154 MB, and a batch is a few gathers on the device. The
images come from torchvision's files or from an image-folder tree; a tree is decoded once and
kept in a cache file.
"""

import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from pipeline.augment import MEAN, STD, permutation, uniforms
from pipeline.data import Batch
from pipeline.errors import UserError

LOG = logging.getLogger(__name__)
SPLITS = ("train", "test")
SIDE = 32
PADDING = 4
BLOCK = 256  # images that a decoding thread takes at a time
FETCH = "or fetch it with data.path=data/cifar10 data.download=true"

Pixels = NDArray[np.uint8]


class _TestOnly(CIFAR10):  # type: ignore[misc]
    """The test split alone: evaluation neither needs nor reads the training files."""

    train_list: list[list[str]] = []


@dataclass(frozen=True, eq=False)
class CifarSplit:
    """The training or the test images, in host memory."""

    images: torch.Tensor  # (N, 32, 32, 3), uint8, RGB
    labels: torch.Tensor  # (N,), int64
    classes: tuple[str, ...]  # class names; a label is an index into them
    fingerprint: str  # SHA-256 of all of the above, in hex


def load_cifar10(
    path: Path | None, *, split: str, download: bool, cache: Path | None = None
) -> CifarSplit:
    """Split ``split`` ("train" or "test") of the data set at ``path``; the other is not read.

    ``path`` is, or holds, torchvision's folder ``cifar-10-batches-py`` (its checksums are
    verified; ``download`` fetches what is missing), or it holds ``train/<class>/*`` and
    ``test/<class>/*``: 32x32 JPEG or PNG files, classes numbered by name, hidden files left out.
    A tree is decoded once into a file in ``cache``: by default in ``path``, or in ``data/cache``
    where ``path`` is not writable. Raises UserError when the data set is missing or broken.
    """
    assert split in SPLITS, split
    if path is None:
        raise UserError(f"data.path is not set: give the folder of CIFAR-10, {FETCH}")
    root = path.resolve().parent if path.resolve().name == CIFAR10.base_folder else path
    is_tree = any((path / name).is_dir() for name in SPLITS)
    if (root / CIFAR10.base_folder).is_dir() or (download and not is_tree):
        return _load_official(root, split, download)
    if is_tree:
        return _load_tree(path, split, cache)
    neither = f"holds neither {CIFAR10.base_folder}/ nor train/ and test/"
    problem = neither if path.exists() else "does not exist"
    raise UserError(f"data.path={path} {problem}: give the folder of CIFAR-10, {FETCH}")


def _load_official(root: Path, split: str, download: bool) -> CifarSplit:
    """Torchvision's files, ``root/cifar-10-batches-py``."""
    source = CIFAR10 if split == "train" else _TestOnly
    try:
        data = source(root, train=split == "train", download=download)
    except (OSError, RuntimeError, HTTPException) as error:
        problem = "is incomplete or damaged: data.download=true fetches it again"
        if download:
            problem = f"cannot be fetched ({error}): check the network and the disk"
        raise UserError(f"data.path={root}: {CIFAR10.base_folder}/ {problem}") from error
    return _split(np.ascontiguousarray(data.data), data.targets, tuple(data.classes))


def _split(images: Pixels, labels: list[int], classes: tuple[str, ...]) -> CifarSplit:
    digest = hashlib.sha256(repr((images.shape, labels, classes)).encode())
    digest.update(images.data)
    pixels, targets = torch.from_numpy(images), torch.tensor(labels)
    return CifarSplit(pixels, targets, classes, digest.hexdigest())


def _load_tree(path: Path, split: str, cache: Path | None) -> CifarSplit:
    """An image-folder tree, from the cache where that still describes it."""
    try:
        classes = _tree_classes(path, split)
        files, labels, source = _scan(path / split, classes)
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})"
        raise UserError(f"data.path: {reason}: make it readable or remove it") from error
    file = _cache_file(path, split, cache)
    loaded = _read_cache(file, source, labels, classes)
    if loaded is None:
        loaded = _split(_decode(files, path / split), labels, classes)
        _write_cache(file, source, loaded)
    return loaded


def _tree_classes(path: Path, split: str) -> tuple[str, ...]:
    """The names of the class folders, sorted. Training needs both splits, evaluation its own."""
    found: dict[str, set[str]] = {}
    for name in SPLITS:
        if (path / name).is_dir():
            found[name] = {item.name for item in _visible(path / name) if item.is_dir()}
        elif split in ("train", name):
            raise UserError(f"data.path={path} has no folder {name}/: add it, or correct the path")
    odd = found.get("train", found["test"]) ^ found["test"]
    if odd:
        where = f"{sorted(odd)[0]}/ is a class folder in one of train/ and test/ only"
        raise UserError(f"data.path={path}: {where}: both need the same ones")
    if len(found[split]) < 2:
        raise UserError(f"data.path={path}: {split}/ needs the folders of at least 2 classes")
    return tuple(sorted(found[split]))


def _visible(folder: Path) -> list[Path]:
    """What ``folder`` holds, by name, without hidden files such as .DS_Store."""
    visible = (item for item in folder.iterdir() if not item.name.startswith("."))
    return sorted(visible, key=lambda item: item.name)


def _scan(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int], str]:
    """All files with their labels, and a hash over their names, sizes and modification times."""
    files: list[Path] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for label, name in enumerate(classes):
        members = _visible(folder / name)
        if not members:
            raise UserError(f"data.path: {folder / name} is empty: add images or remove the class")
        for file in members:
            stat = file.stat()
            digest.update(repr((name, file.name, stat.st_size, stat.st_mtime_ns)).encode())
        files += members
        labels += [label] * len(members)
    return files, labels, digest.hexdigest()


def _decode(files: list[Path], folder: Path) -> Pixels:
    """The pixels of all files, (N, 32, 32, 3). The first bad file in their order is named."""
    images = np.empty((len(files), SIDE, SIDE, 3), np.uint8)

    def decode_block(start: int) -> int:
        block = files[start : start + BLOCK]
        for number, file in enumerate(block, start):
            images[number] = _read_image(file)
        return len(block)

    terminal = sys.stderr.isatty()
    if not terminal:
        print(f"decoding the {len(files)} images of {folder} once", file=sys.stderr, flush=True)
    pool = ThreadPoolExecutor()
    try:
        with tqdm(total=len(files), desc=f"decoding {folder}", disable=not terminal) as bar:
            for done in pool.map(decode_block, range(0, len(files), BLOCK)):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)  # a bad file or Ctrl-C does not wait for the rest
    return images


def _read_image(file: Path) -> Pixels:
    """One image as RGB, (32, 32, 3)."""
    try:
        with Image.open(file) as image:
            # Pillow would clip 16-bit pixels (modes I and F) instead of scaling them.
            if image.size == (SIDE, SIDE) and image.mode[0] not in "IF":
                return np.asarray(image.convert("RGB"))
            found = f"{image.width}x{image.height} in mode {image.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"data.path: {file} is no whole image ({error}): remove it") from error
    remedy = f"convert it to {SIDE}x{SIDE} with 8 bits per channel, or remove it"
    raise UserError(f"data.path: {file} is {found}: {remedy}")


def _cache_file(path: Path, split: str, cache: Path | None) -> Path:
    """Named after the tree's place, so that several trees can share one cache folder."""
    folder = cache or (path if os.access(path, os.W_OK) else Path("data/cache"))
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return folder / f"cifar-{split}-{place}.npz"


def _read_cache(
    file: Path, source: str, labels: list[int], classes: tuple[str, ...]
) -> CifarSplit | None:
    """The cached split, or None where there is none of these files or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            if str(saved["source"]) != source:
                return None
            split = _split(saved["images"], labels, classes)
            if split.fingerprint == str(saved["fingerprint"]):
                return split
            problem = "wrong checksum"
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # nothing to read; whether it can be written, the writing tells
    except Exception as error:  # a damaged archive raises almost anything
        problem = str(error) or type(error).__name__
    LOG.warning("%s is damaged (%s): the images are decoded again", file, problem)
    return None


def _write_cache(file: Path, source: str, split: CifarSplit) -> None:
    """Whole or not at all: the file gets its name when all of it is on the disk."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        images, fingerprint = split.images.numpy(), split.fingerprint
        with temporary.open("wb") as stream:
            np.savez(stream, source=source, fingerprint=fingerprint, images=images)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        LOG.warning("no cache in %s (%s): every run decodes again", file.parent, error.strerror)
    finally:
        with suppress(OSError):
            temporary.unlink()


def augment_batch(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    """Pads with 4 black pixels, crops 32x32 at (top, left), then mirrors where ``flip``.

    ``images`` (N, 32, 32, 3) uint8; ``top`` and ``left`` (N,) int64 in 0..8; ``flip`` (N,) bool.
    Returns (N, 32, 32, 3) uint8. One gather of pixels; nothing waits for the device.
    """
    n, wide = len(images), SIDE + 2 * PADDING
    padded = images.new_zeros(n, wide, wide, 3)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
    line = torch.arange(SIDE, device=images.device)
    first = torch.arange(n, device=images.device)[:, None] * wide
    rows = first + top[:, None] + line
    columns = left[:, None] + torch.where(flip[:, None], SIDE - 1 - line, line)
    pixels = rows[:, :, None] * wide + columns[:, None, :]
    return padded.view(-1, 3).index_select(0, pixels.view(-1)).view(n, SIDE, SIDE, 3)


class CifarLoader:
    """A split on ``device``, as the trainer's Loader.

    Training shuffles, drops the ragged last batch, and crops and flips if ``augment``, by draws
    that depend on (seed, epoch, image) alone. Evaluation delivers every image once, in order,
    as it is. Images are (x / 255 - mean) / std, computed in float32 and given as ``dtype``.
    Raises UserError where a training batch is larger than the set.
    """

    def __init__(
        self,
        split: CifarSplit,
        *,
        batch_size: int,
        train: bool,
        augment: bool,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        n = len(split.labels)
        if train and batch_size > n:
            raise UserError(f"data.batch_size={batch_size} is more than the {n} training images")
        self.images = n - n % batch_size if train else n
        self.classes, self.fingerprint = split.classes, split.fingerprint
        self._batch_size, self._train, self._augment = batch_size, train, train and augment
        self._seed, self._dtype, self._device = seed, dtype, device
        self._pixels, self._labels = split.images.to(device), split.labels.to(device)
        self._mean = torch.tensor(MEAN, dtype=torch.float32, device=device)
        self._std = torch.tensor(STD, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.images // self._batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of epoch ``epoch`` (both from 0)."""
        n = len(self._labels)
        order = permutation(self._seed, epoch, n) if self._train else np.arange(n)
        index = torch.from_numpy(order[: self.images]).to(self._device)
        # The whole epoch's draws at once: a few launches, not a few per batch.
        draws = uniforms(self._seed, epoch, index, 3)
        top, left = (draws[:, :2] * (2 * PADDING + 1)).long().unbind(1)
        flip = draws[:, 2] < 0.5
        for batch in range(start, len(self)):
            part = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            images = self._pixels.index_select(0, index[part])
            if self._augment:
                images = augment_batch(images, top[part], left[part], flip[part])
            yield Batch(self._normalise(images), self._labels.index_select(0, index[part]))

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 32, 32, 3) uint8 -> (N, 3, 32, 32), channels_last."""
        scaled = images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return scaled.to(self._dtype).permute(0, 3, 1, 2)
