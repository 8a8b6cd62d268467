"""CIFAR-10 and CIFAR-100 in host memory, from torchvision's files or from an image-folder tree.

A tree is decoded once and kept in a cache file.
"""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.draws import Ints
from pipeline.data.image import open_rgb
from pipeline.data.tree import ImageFolder, check_same_classes, class_folders, scan
from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import UserError
from pipeline.run.files import open_file, replacing
from pipeline.run.problems import Problems

SIDE = 32

BLOCK = 256  # images that a decoding thread takes at a time

# Torchvision's folders, by data.dataset.
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class CifarSplit:
    """The training or the test images, in host memory."""

    images: torch.Tensor  # (N, 32, 32, 3), uint8, RGB
    labels: torch.Tensor  # (N,), int64
    classes: tuple[str, ...]  # class names; a label is an index into them
    fingerprint: str  # SHA-256 of all of the above, in hex


def load_cifar(
    name: str,
    path: Path | None,
    *,
    split: str,
    download: bool,
    cache: Path | None = None,
    excluded: str | None = None,
) -> CifarSplit:
    """The split "train" or "test" of the data set ``name``, of ``FOLDERS``, at ``path``; the other
    split is not read.

    ``path`` is, or holds, torchvision's folder, such as ``cifar-10-batches-py`` (its checksums are
    verified; ``download`` fetches what is missing), or it is a tree of 32x32 images,
    ``train/<class>/*`` and ``test/<class>/*`` (see tree.scan). A tree is decoded once into
    a file in ``cache``: by default in ``path``, or in ``data/cache`` where ``path`` is not
    writable. ``excluded``: a list of images of a tree to leave out. The classes of CIFAR-100 are
    its hundred fine ones. Raises UserError when the data set is missing or broken.
    """
    assert split in ("train", "test"), split
    remedy = (
        f"give the folder of the data set, or fetch it: data.path=data/{name} data.download=true"
    )
    if path is None:
        raise UserError(f"data.path: not set; {remedy}")
    own = FOLDERS[name]
    root = path.resolve().parent if path.resolve().name == own else path
    is_tree = (path / "train").is_dir() or (path / "test").is_dir()
    if (root / own).is_dir() or (download and not is_tree):
        if excluded is not None:
            raise UserError(
                f"data.exclude leaves out single images, but {root / own} holds "
                "torchvision's files; set data.exclude=null"
            )
        return _load_official(name, root, split, download)
    if is_tree:
        return _load_tree(path, split, cache, excluded)
    neither = f"holds neither {own}/ nor train/ and test/"
    raise UserError(f"data.path: {path} {neither if path.exists() else 'does not exist'}; {remedy}")


def _load_official(name: str, root: Path, split: str, download: bool) -> CifarSplit:
    """A split of torchvision's files of the data set ``name``, in their folder in ``root``."""
    from pipeline.data.cifar_official import read_official  # torchvision takes seconds to import

    return _split(*read_official(name, root, split, download))


def _split(images: Pixels, labels: Ints, classes: tuple[str, ...]) -> CifarSplit:
    digest = hashlib.sha256(repr((images.shape, labels.tolist(), classes)).encode())
    digest.update(images.data)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    return CifarSplit(pixels, targets, classes, digest.hexdigest())


def _load_tree(path: Path, split: str, cache: Path | None, excluded: str | None) -> CifarSplit:
    """A split of an image-folder tree, taken from the cache where that still describes it."""
    problems = Problems(local=True)
    # What is given to evaluate need not hold training images.
    for needed in sorted({"test", split}):
        with problems.noted():
            if not (path / needed).is_dir():
                raise UserError(f"data.path: {path} has no folder {needed}/; add it")
    problems.raise_all()
    folder = scan(path, split, excluded, problems)
    other = "test" if split == "train" else "train"
    if folder.classes and (path / other).is_dir():
        with problems.noted():
            check_same_classes(
                path, {split: folder.classes, other: class_folders(path / other, Counter())}
            )
    if len(folder.classes) == 1:
        with problems.noted():
            raise UserError(f"data.path: {path} has one class only; add the folders of others")
    problems.raise_all()
    source = _state(folder)
    file = _cache_file(path, split, cache)
    loaded = _read_cache(file, source, folder)
    if loaded is None:
        loaded = _split(_decode(folder, split), folder.labels, folder.classes)
        _write_cache(file, source, loaded)
    return loaded


def _state(folder: ImageFolder) -> str:
    """A digest that changes if a file is added, removed, excluded, renamed, resized or touched."""
    digest = hashlib.sha256(folder.fingerprint.encode())
    for path in folder.paths(range(len(folder.files))):
        digest.update(b"%d " % os.stat(path).st_mtime_ns)
    return digest.hexdigest()


def _decode(folder: ImageFolder, split: str) -> Pixels:
    """The pixels of all files, (N, 32, 32, 3).

    Raises UserError that names the first bad file in their order.
    """
    images = np.empty((len(folder.files), SIDE, SIDE, 3), np.uint8)

    def decode_block(start: int) -> None:
        for number, name in enumerate(folder.files[start : start + BLOCK], start):
            images[number] = _read_image(folder.root, name)

    logger.info("decoding the %d images of %s once", len(images), folder.root / split)
    starts = range(0, len(images), BLOCK)
    with ProgressBar(f"decoding {split}/", len(starts)) as bar:
        pool = ThreadPoolExecutor()
        try:
            for _ in pool.map(decode_block, starts):
                bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)  # a bad file or Ctrl-C does not wait for the rest
    return images


def _read_image(root: Path, name: str) -> Pixels:
    """One image as RGB, (32, 32, 3)."""
    image = open_rgb(root, name)
    if image.size != (SIDE, SIDE):
        width, height = image.size
        raise UserError(
            f"data.path: {root}/{name} is {width}x{height}, not {SIDE}x{SIDE}; resize it"
        )
    return np.asarray(image)


def _cache_file(path: Path, split: str, cache: Path | None) -> Path:
    """The cache file of a split, named after the place of the tree, so that several trees can share
    one cache folder."""
    folder = cache or (path if os.access(path, os.W_OK) else Path("data/cache"))
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return folder / f"cifar-{split}-{place}.npz"


def _read_cache(file: Path, source: str, folder: ImageFolder) -> CifarSplit | None:
    """The cached split, or None where there is none of these files or it is damaged."""
    try:
        with open_file(file) as stream, np.load(stream, allow_pickle=False) as saved:
            if str(saved["source"]) != source:
                return None
            split = _split(saved["images"], folder.labels, folder.classes)
            if split.fingerprint == str(saved["fingerprint"]):
                return split
            problem = "wrong checksum"
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # if the folder cannot be written, the attempt to write will say so
    except Exception as error:  # a damaged archive raises almost anything
        problem = str(error) or type(error).__name__
    logger.warning("%s is damaged (%s): the images are decoded again", file, problem)
    return None


def _write_cache(file: Path, source: str, split: CifarSplit) -> None:
    images, fingerprint = split.images.numpy(), split.fingerprint
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez(stream, source=source, fingerprint=fingerprint, images=images)
    except OSError as error:
        reason = error.strerror
        logger.warning("no cache in %s (%s): every run decodes again", file.parent, reason)
