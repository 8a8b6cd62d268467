"""Where the numbers of a run go beside metrics.jsonl, when asked: wandb and TensorBoard.

All are given the same numbers. Whatever fails in one of them is a warning: the training matters
more.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.points import Histogram, Value
from pipeline.run.wandb_run import record_live


class Tracker(Protocol):
    """Takes the figures of a run. Its methods may raise whatever they like: see ``Guarded``."""

    def write(self, values: Mapping[str, Value], axes: Mapping[str, int]) -> None:
        """Add ``values``, by names such as "epoch/val_top1". ``axes``: the steps and the images
        that the training has taken by then, and the epoch, from 0, where there is one."""

    def alert(self, text: str) -> None:
        """Send ``text`` to the person whose run this is."""

    def finish(self, exit_code: int) -> None:
        """End the run, whose command exits with ``exit_code``."""


def open_trackers(config: Config, origin: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that ``config`` asks for, of a run that has this ``origin``."""
    found: list[Tracker] = []
    if config.log.wandb != "disabled":
        found.append(Guarded("wandb", lambda: record_live(config, origin)))
    if config.log.tensorboard:
        found.append(Guarded("TensorBoard", lambda: TensorBoard(config.run_folder)))
    return found


class Guarded:
    """The tracker that ``begin`` gives; the first failure is one warning and ends it."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        with self._guard():
            self.tracker = begin()

    def write(self, values: Mapping[str, Value], axes: Mapping[str, int]) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.write(values, axes)

    def alert(self, text: str) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.alert(text)

    def finish(self, exit_code: int) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.finish(exit_code)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.tracker = None
            logger.warning("%s is off for this run: %s", self.name, first_line(error))


class TensorBoard:
    """Event files in the run's folder ``tensorboard``, over steps; what a resumed run repeats takes
    the place of what was there."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.begin = partial(SummaryWriter, str(folder / "tensorboard"))
        self.writer: SummaryWriter | None = None

    def write(self, values: Mapping[str, Value], axes: Mapping[str, int]) -> None:
        if self.writer is None:
            self.writer = self.begin(purge_step=axes["step"])
        for name, value in values.items():
            if isinstance(value, Histogram):
                self._add_histogram(name, value, axes["step"])
            else:
                self.writer.add_scalar(name, value, axes["step"])
        self.writer.flush()

    def _add_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        """Its sums are those of the middles of the bins."""
        assert self.writer
        edges, counts = np.array(histogram.edges()), np.array(histogram.counts)
        middles = (edges[1:] + edges[:-1]) / 2
        self.writer.add_histogram_raw(
            name,
            min=-histogram.limit,
            max=histogram.limit,
            num=counts.sum(),
            sum=counts @ middles,
            sum_squares=counts @ middles**2,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def alert(self, text: str) -> None:
        if self.writer:
            self.writer.add_text("alert", text)

    def finish(self, exit_code: int) -> None:
        if self.writer:
            self.writer.close()
