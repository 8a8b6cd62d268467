"""One batch after the other, eagerly or as replays of a CUDA graph: for training and evaluation."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pipeline.data.loader import IGNORED, Batch, Loader, ResidentLoader
from pipeline.train.graph import Captured, Graphs


class Stepper:
    """Does ``work`` on the batches of ``loader``, each of them one step.

    With ``graphs`` a step is captured once and then replayed. Where the images lie on the device,
    the captured step also draws its batch; otherwise each batch is copied to where the step reads
    it, and at another resolution the step is captured anew. ``tensors`` gives all tensors that
    outlive a step and that ``work`` reads or writes. Without ``graphs`` every step runs eagerly,
    with the same results.
    """

    def __init__(
        self,
        loader: Loader,
        work: Callable[[Batch], None],
        tensors: Callable[[], Iterable[Tensor]],
        graphs: Graphs | None = None,
    ) -> None:
        self.loader, self.work, self.tensors = loader, work, tensors
        self.cursor = loader.cursor() if graphs and isinstance(loader, ResidentLoader) else None
        self.inlet = Inlet()
        self.captured: Captured | None = None
        if graphs:
            self.captured = Captured(graphs, self._draw_and_work, self.all_tensors)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[float]:
        """Take steps ``start``, ``start + 1``, ... of ``epoch`` (both from 0); after each one comes
        the time in seconds for which it waited for its batch."""
        if self.captured:
            self.captured.check()
        return self._replay(epoch, start) if self.cursor else self._step(epoch, start)

    def look_ahead(self, epoch: int) -> None:
        """Make the order of ``epoch``, which comes next, while the device is still at work."""
        if self.cursor:
            self.cursor.look_ahead(epoch)

    def reset(self) -> None:
        """Capture again: tensors were replaced."""
        if self.captured:
            self.captured.reset()

    def all_tensors(self) -> Iterator[Tensor]:
        """All tensors that outlive a captured step and that it reads or writes."""
        source = self.cursor.tensors() if self.cursor else self.inlet.tensors()
        return itertools.chain(source, self.tensors())

    def _replay(self, epoch: int, start: int) -> Iterator[float]:
        assert self.captured and self.cursor
        self.cursor.seek(epoch, start)
        for _ in range(start, len(self.loader)):
            self.captured()
            yield 0.0

    def _draw_and_work(self) -> None:
        self.work((self.cursor or self.inlet).draw())

    def _step(self, epoch: int, start: int) -> Iterator[float]:
        batches = self.loader.epoch(epoch, start)
        for _ in range(start, len(self.loader)):
            began = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - began
            if batch is not None:  # in evaluation this process may have one batch less than others
                self._take(batch)
            yield waited

    def _take(self, batch: Batch) -> None:
        if self.captured:
            if not self.inlet.takes(batch):
                self.inlet = Inlet()
                self.captured.reset()
            self.inlet.fill(batch)
            self.captured()
        else:
            self.work(batch)


class Inlet:
    """Where a captured step reads its batch: tensors that stay, into which each batch is copied."""

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def takes(self, batch: Batch) -> bool:
        """Whether the images of ``batch`` have the sides of those before, if there were any."""
        return self.batch is None or self.batch.images.shape[1:] == batch.images.shape[1:]

    def fill(self, batch: Batch) -> None:
        """Copy ``batch`` here; waits for nothing. The first one makes the room for the others.

        The last batch of an evaluation may have fewer images. Those left from the batch before then
        fill it up, with labels that say so.
        """
        if self.batch is None:
            self.batch = Batch(*map(torch.empty_like, batch))
        n, (images, labels) = len(batch.labels), self.batch
        images[:n].copy_(batch.images, non_blocking=True)
        labels[:n].copy_(batch.labels, non_blocking=True)
        if n < len(labels):
            labels[n:].fill_(IGNORED)

    def draw(self) -> Batch:
        """The batch that was copied here last."""
        assert self.batch
        return self.batch

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the batch."""
        return tuple(self.batch or ())
