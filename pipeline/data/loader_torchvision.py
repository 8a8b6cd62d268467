"""Image folders through torchvision, for machines without DALI.

The images come in the same order and with the same crops and flips as in loader_dali.py; only the
resize rounds differently.
"""

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from pipeline.data.draws import FLIP_COLUMN, MEAN, STD, Floats, random_resized_crop
from pipeline.data.image import open_rgb
from pipeline.data.loader import Batch
from pipeline.data.loader_stream import FolderLoader
from pipeline.data.plan import Plan, Position
from pipeline.run.errors import UserError


class TorchvisionLoader(FolderLoader):
    """The portable ``Loader`` of an image folder. ``workers`` is the number of processes that
    decode, one batch each; 0 decodes in this process."""

    def _open(self, position: Position) -> Any:
        mean, std = torch.tensor([MEAN, STD], device=self.device).mul(255)[..., None, None]
        self._mean, self._std = mean, std
        if self.workers:
            gc.collect()  # or a forked worker might collect an older loader, and hang
        loader = DataLoader(
            _Batches(self),
            batch_size=None,  # an item is a batch
            sampler=_positions(self.plan, position),
            num_workers=self.workers,
            worker_init_fn=_leave_signals_to_the_trainer,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the trainer's
        )
        return iter(loader)

    def _read(self) -> Batch:
        batch = next(self._stream)
        if isinstance(batch, str):
            raise UserError(batch)
        nhwc, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        pixels = nhwc.permute(0, 3, 1, 2).to(torch.float32)
        return Batch(pixels.sub_(self._mean).div_(self._std).to(self.dtype), labels)


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ignore Ctrl-C and end at SIGTERM: a forked worker has the trainer's handlers, and a terminal
    interrupts both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _positions(plan: Plan, position: Position) -> Iterator[Position]:
    while True:
        yield position
        position = plan.following(position)


class _Batches(Dataset[Any]):
    """Maps a position to its images (N, size, size, 3) uint8 and labels (N,) int64."""

    def __init__(self, loader: FolderLoader) -> None:
        folder = loader.folder
        self._root, self._labels, self._plan = str(folder.root), folder.labels, loader.plan
        # One array, not a million strings: quick to pickle, and shared by forked workers.
        self._files = np.array([os.fsencode(file) for file in folder.files])
        self._size, self._resize = loader.size, loader.resize
        self._min_area, self._random = loader.min_area, loader.random

    def __getitem__(self, position: Position) -> tuple[torch.Tensor, torch.Tensor] | str:
        """The images and labels of a batch, or the message of a ``UserError``: torch would wrap one
        that is raised in a worker."""
        indices = self._plan.indices(position)
        images = np.empty((len(indices), self._size, self._size, 3), dtype=np.uint8)
        try:
            for i, u in enumerate(self._plan.uniforms(position)):
                images[i] = self._pixels(indices[i], u)
        except UserError as error:
            return str(error)
        return torch.from_numpy(images), torch.from_numpy(self._labels[indices])

    def _pixels(self, index: int, u: Floats) -> npt.NDArray[np.uint8]:
        image = open_rgb(self._root, os.fsdecode(self._files[index]))
        if not self._random:
            resized = functional.resize(image, [self._resize], antialias=True)
            return np.asarray(functional.center_crop(resized, [self._size, self._size]))
        height, width = np.array([image.height]), np.array([image.width])
        window = random_resized_crop(u[None], height, width, self._min_area)[0].tolist()
        size = [self._size, self._size]
        pixels = np.asarray(functional.resized_crop(image, *window, size, antialias=True))
        return pixels[:, ::-1] if u[FLIP_COLUMN] < 0.5 else pixels
