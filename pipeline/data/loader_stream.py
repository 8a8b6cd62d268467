"""What the two loaders of image folders share: a stream of batches that is read ahead of use."""

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.data.loader import Batch
from pipeline.data.plan import Plan, Position
from pipeline.data.tree import ImageFolder
from pipeline.run import processes
from pipeline.run.console import logger


class FolderLoader(abc.ABC):
    """A ``Loader`` (see loader.py) of an image folder; the subclasses differ in who decodes.

    Training sees a random resized crop and flip of every image if ``augment``; otherwise, and in
    evaluation, the short side is resized to ``resize`` pixels and the central square of ``size``
    pixels taken. Batches are read ahead in an endless stream of positions, across the ends of
    epochs; asking for a position out of turn restarts the stream there, and so does an epoch whose
    images have another size: ``size_of`` gives it, in place of ``size``.
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
        hw_decoder_load: float = 0.75,
        size_of: Callable[[int], int] | None = None,
    ) -> None:
        assert resize >= size and dtype in (torch.float16, torch.float32, torch.float64)
        self.folder, self.size, self.resize = folder, size, resize
        self._size_of = size_of or (lambda epoch: size)
        self.min_area, self.random = min_area, train and augment
        self.workers, self.dtype, self.device = workers, dtype, device
        self.hw_decoder_load = hw_decoder_load
        share = processes.rank(), processes.size()
        self.plan = Plan(len(folder.files), batch_size, train, seed, *share)
        self.plan.check_batch_size()
        self.classes, self.fingerprint = folder.classes, folder.fingerprint
        self.images = len(self.plan) * batch_size if train else len(folder.files)
        self.left = len(folder.files) - self.images
        self._stream: Any = None  # delivers the batches, which it reads ahead
        self._upcoming: Position | None = None  # the position it delivers next

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of an epoch; evaluation has but one epoch."""
        for batch in range(start, self.plan.batches):
            yield self._batch((epoch if self.plan.train else 0, batch))

    def _batch(self, position: Position) -> Batch:
        size = self._size_of(position[0])
        if position != self._upcoming or size != self.size:
            self._stream = None  # ends before the next one asks for memory
            self._resize(size, position[0])
            self._stream = self._open(position)
        self._upcoming = None
        try:
            batch = self._read()
        except BaseException:
            self._stream = None  # ends here, not when the exception is forgotten
            raise
        self._upcoming = self.plan.following(position)
        return batch

    def _resize(self, size: int, epoch: int) -> None:
        """Let images have ``size`` pixels a side from ``epoch`` on."""
        if size != self.size:
            logger.info("from epoch %d on, training images have %d pixels a side", epoch + 1, size)
        self.size = size

    @abc.abstractmethod
    def _open(self, position: Position) -> Any:
        """Begin a stream of all batches from ``position`` on."""

    @abc.abstractmethod
    def _read(self) -> Batch:
        """The next batch of the stream."""
