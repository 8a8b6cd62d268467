"""Image folders and shards through Pillow, for machines without DALI.

The images come in the same order and with the same crops and flips as in loader_dali.py; only the
resize rounds differently: as in torchvision, after which the loader is called.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.data.draws import FLIP_COLUMN, MEAN, STD, Floats, random_resized_crop
from pipeline.data.image import central, resized
from pipeline.data.loader import Batch
from pipeline.data.loader_stream import FolderLoader
from pipeline.data.plan import Plan, Position
from pipeline.run import processes
from pipeline.run.console import logger
from pipeline.run.errors import UserError

SHARED = "/dev/shm"  # where Linux keeps what processes share
AHEAD = 2  # batches that each process reads ahead


class TorchvisionLoader(FolderLoader):
    """The portable ``Loader`` of an image folder. ``workers`` is the number of processes that
    decode, one batch each; 0 decodes in this process."""

    def _open(self, position: Position) -> Any:
        mean, std = torch.tensor([MEAN, STD], device=self.device).mul(255)[..., None, None]
        self._mean, self._std = mean, std
        if self.workers:
            gc.collect()  # or a forked worker might collect an older loader, and hang
        loader = _Loader(
            _Batches(self, shared=self._fits()),
            batch_size=None,  # an item is a batch
            collate_fn=_as_it_is,  # torch's own would make tensors of arrays
            sampler=_positions(self.plan, position),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            worker_init_fn=functools.partial(_become_a_worker, os.getpid()),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the trainer's
        )
        try:
            with _dead_children_raise_nothing():
                return iter(loader)
        except OSError as error:
            raise UserError(
                f"data.workers={self.workers}: their processes cannot start: {error.strerror}; set "
                "data.workers=0"
            ) from None

    def _fits(self) -> bool:
        """Whether the batches that are read ahead fit into shared memory; says it if not."""
        needed = (AHEAD * self.workers + 1) * self.plan.local_batch_size * self.size**2 * 3
        free = _free_shared_memory()
        if free is None or needed <= free:
            return True
        logger.warning(
            "%s has %d MB free, %d would be used: batches come through pipes, which is slower; in "
            "docker, --ipc=host or --shm-size gives more",
            SHARED, free >> 20, (needed >> 20) + 1,
        )  # fmt: skip
        return False

    def _read(self) -> Batch:
        try:
            batch = next(self._stream)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # A batch whose process is gone cannot be fetched from it, before torch has noticed.
            is_told = re.match(r"DataLoader worker \(pid", str(error))
            if isinstance(error, RuntimeError) and not is_told:
                raise
            raise UserError(
                f"a loader process ended ({' '.join(str(error).split())}); set data.workers=0, or "
                "give the processes more memory (in docker, --ipc=host or --shm-size)"
            ) from None
        if isinstance(batch, str):
            raise UserError(batch)
        nhwc, labels = (torch.as_tensor(each).to(self.device, non_blocking=True) for each in batch)
        pixels = nhwc.permute(0, 3, 1, 2).to(torch.float32)
        return Batch(pixels.sub_(self._mean).div_(self._std).to(self.dtype), labels)


@contextlib.contextmanager
def _dead_children_raise_nothing() -> Iterator[None]:
    """Keep torch from handling SIGCHLD, by an exception in whatever the trainer does just then.

    Whoever waits for a batch of a process that is dead learns it within seconds.
    """
    number = getattr(signal, "SIGCHLD", None)
    previous = number and signal.getsignal(number)
    try:
        yield
    finally:
        if number and signal.getsignal(number) != previous:
            signal.signal(number, previous)


class _Loader(DataLoader[Any]):
    """torch's, whose processes say nothing when they could not start."""

    def _get_iterator(self) -> Any:
        return _Processes(self) if self.num_workers else super()._get_iterator()


class _Processes(_MultiProcessingDataLoaderIter):
    def __del__(self) -> None:
        """End the processes, as torch does, which expects that its constructor came to its end:
        after one that failed, Python would print a traceback for each attribute not yet set."""
        with contextlib.suppress(AttributeError):
            super().__del__()


def _free_shared_memory() -> int | None:
    """In bytes; None where it cannot be told."""
    try:
        found = os.statvfs(SHARED)
    except (OSError, AttributeError):  # Windows has no statvfs
        return None
    return found.f_bavail * found.f_frsize


def _become_a_worker(parent: int, _: int) -> None:
    """Leave signals to the process ``parent``, which trains, and end with it.

    A forked worker has the trainer's handlers; and a terminal sends its signals to both.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    if multiprocessing.get_start_method() == "fork":
        processes.end_with_parent(getattr(signal, "SIGKILL", signal.SIGTERM))
        if os.getppid() != parent:  # it died meanwhile
            os._exit(1)


def _as_it_is(batch: Any) -> Any:
    return batch


def _positions(plan: Plan, position: Position) -> Iterator[Position]:
    while True:
        yield position
        position = plan.following(position)


class _Batches(Dataset[Any]):
    """Maps a position to its images (N, size, size, 3) uint8 and labels (N,) int64."""

    def __init__(self, loader: FolderLoader, *, shared: bool = True) -> None:
        folder = loader.folder
        self._shared = shared  # tensors travel through shared memory, arrays through a pipe
        self._store, self._labels, self._plan = folder.store, folder.labels, loader.plan
        # One array, not a million strings: quick to pickle, and shared by forked workers.
        self._files = np.array([os.fsencode(file) for file in folder.files])
        self._size, self._resize = loader.size, loader.resize
        self._min_area, self._random = loader.min_area, loader.random

    def __getitem__(self, position: Position) -> tuple[Any, Any] | str:
        """The images and labels of a batch, or the message of a ``UserError``: torch would wrap one
        that is raised in a worker."""
        indices = self._plan.indices(position)
        images = np.empty((len(indices), self._size, self._size, 3), dtype=np.uint8)
        try:
            for i, u in enumerate(self._plan.uniforms(position)):
                images[i] = self._pixels(indices[i], u)
        except UserError as error:
            return str(error)
        batch = images, self._labels[indices]
        return (torch.from_numpy(batch[0]), torch.from_numpy(batch[1])) if self._shared else batch

    def _pixels(self, index: int, u: Floats) -> npt.NDArray[np.uint8]:
        image = self._store.rgb(index, os.fsdecode(self._files[index]))
        if not self._random:
            return np.asarray(central(resized(image, self._resize), self._size))
        height, width = np.array([image.height]), np.array([image.width])
        window = random_resized_crop(u[None], height, width, self._min_area)[0].tolist()
        top, left, height, width = window
        part = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((self._size, self._size), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if u[FLIP_COLUMN] < 0.5 else pixels
