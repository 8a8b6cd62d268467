"""What a network is worth: loss and accuracies over every validation image once."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Loader, ResidentLoader
from pipeline.run.config import Config
from pipeline.train import graph
from pipeline.train.metrics import Sums, cross_entropy
from pipeline.train.precision import autocast


class Evaluation:
    """loss, top1, top5 (per cent) and images of ``model`` over every image of ``loader`` once.

    With ``graphs``, a batch is one replay where the images lie on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        config: Config,
        device: torch.device,
        graphs: graph.Graphs | None = None,
    ) -> None:
        self.model, self.loader, self.config, self.device = model, loader, config, device
        self.sums = Sums(device)
        self.captured: graph.Captured | None = None
        if graphs and isinstance(loader, ResidentLoader):
            self.cursor = loader.cursor()
            self.captured = graph.Captured(graphs, self._draw_and_add, self._tensors)

    @torch.no_grad()
    def __call__(self, after_batch: Callable[[int], None] = lambda done: None) -> dict[str, float]:
        """Evaluate; ``after_batch`` is told how many batches came before. Waits for the device."""
        was_training = self.model.training
        self.model.eval()
        self.sums.reset()
        try:
            add_batch = self._begin()
            for done in range(len(self.loader)):
                add_batch()
                after_batch(done)
        finally:
            self.model.train(was_training)
        means = self.sums.means()
        if means["images"] < self.loader.images:  # a batch was left out: its loss is not finite
            means["loss"] = math.nan
        return means

    def _begin(self) -> Callable[[], None]:
        if self.captured:
            self.captured.check()
            self.cursor.seek(0)
            return self.captured
        batches = self.loader.epoch(0)

        def add_batch() -> None:
            if (batch := next(batches, None)) is not None:  # this process may have one less
                self._add(batch)

        return add_batch

    def _draw_and_add(self) -> None:
        self._add(self.cursor.draw())

    def _add(self, batch: Batch) -> None:
        with autocast(self.config, self.device):
            logits = self.model(batch.images)
        self.sums.update(logits, batch.labels, cross_entropy(logits, batch.labels))

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.sums.values, *self.cursor.tensors())
        yield from itertools.chain(self.model.parameters(), self.model.buffers())
