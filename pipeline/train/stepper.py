"""One batch after the other, eagerly or as replays of a CUDA graph: for training and evaluation."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from pipeline.data.loader import Batch, Loader, ResidentLoader
from pipeline.train.graph import Captured, Graphs


class Stepper:
    """Does ``work`` on the batches of ``loader``, each of them one step.

    With ``graphs``, and where the images lie on the device, drawing a batch and working on it are
    captured once and then replayed; ``tensors`` gives all those that outlive a step and that
    ``work`` reads or writes. Otherwise every step runs eagerly, with the same results.
    """

    def __init__(
        self,
        loader: Loader,
        work: Callable[[Batch], None],
        tensors: Callable[[], Iterable[Tensor]],
        graphs: Graphs | None = None,
    ) -> None:
        self.loader, self.work, self.tensors = loader, work, tensors
        self.captured: Captured | None = None
        if graphs and isinstance(loader, ResidentLoader):
            self.cursor = loader.cursor()
            self.captured = Captured(graphs, self._draw_and_work, self.all_tensors)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[float]:
        """Take steps ``start``, ``start + 1``, ... of ``epoch`` (both from 0); after each one comes
        the time in seconds for which it waited for its batch."""
        return self._replay(epoch, start) if self.captured else self._step(epoch, start)

    def look_ahead(self, epoch: int) -> None:
        """Make the order of ``epoch``, which comes next, while the device is still at work."""
        if self.captured:
            self.cursor.look_ahead(epoch)

    def reset(self) -> None:
        """Capture again: tensors were replaced."""
        if self.captured:
            self.captured.reset()

    def all_tensors(self) -> Iterator[Tensor]:
        """All tensors that outlive a captured step and that it reads or writes."""
        return itertools.chain(self.cursor.tensors(), self.tensors())

    def _replay(self, epoch: int, start: int) -> Iterator[float]:
        assert self.captured
        self.captured.check()
        self.cursor.seek(epoch, start)
        for _ in range(start, len(self.loader)):
            self.captured()
            yield 0.0

    def _draw_and_work(self) -> None:
        self.work(self.cursor.draw())

    def _step(self, epoch: int, start: int) -> Iterator[float]:
        batches = self.loader.epoch(epoch, start)
        for _ in range(start, len(self.loader)):
            began = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - began
            if batch is not None:  # in evaluation this process may have one batch less than others
                self.work(batch)
            yield waited
