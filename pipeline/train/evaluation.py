"""What a network is worth: all metrics over every validation image once."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Loader
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import ProgressBar
from pipeline.train.graph import Graphs
from pipeline.train.memory import Work, explained
from pipeline.train.metrics import Sums, cross_entropy
from pipeline.train.precision import autocast
from pipeline.train.stepper import Stepper


class Evaluation:
    """Evaluates ``model`` on every image of ``loader`` once.

    With ``graphs``, a batch is one replay where the images lie on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        config: Config,
        device: torch.device,
        graphs: Graphs | None = None,
    ) -> None:
        self.model, self.loader, self.config, self.device = model, loader, config, device
        self.sums = Sums(device)
        self.stepper = Stepper(loader, self._add, self._tensors, graphs)

    @torch.no_grad()
    def __call__(
        self, after_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """The figure of each metric by its name, and the number of ``images``.

        ``after_batch`` is called after each batch with the number of batches before it and that of
        all. The loss is NaN if that of a batch was not finite. Waits for the device.
        """
        was_training = self.model.training
        self.model.eval()
        self.sums.reset()
        images, batches = self.config.data.eval_batch_size, len(self.loader)
        try:
            with explained(self._work()), ProgressBar("evaluation", batches, images=images) as bar:
                for done, _ in enumerate(self.stepper.epoch(0)):
                    bar.advance()
                    after_batch(done, batches)
        finally:
            self.model.train(was_training)
        processes.barrier()  # over the host: where another process has failed, this one learns it
        means = self.sums.means()
        if means["images"] < self.loader.images:  # a batch was left out: its loss is not finite
            means["loss"] = math.nan
        return means

    def _add(self, batch: Batch) -> None:
        with autocast(self.config, self.device):
            logits = self.model(batch.images)
        self.sums.update(logits, batch.labels, cross_entropy(logits, batch.labels))

    def _work(self) -> Work:
        values = self.config, self.device, self.model
        return Work(*values, trains=False, try_=self._add, forget=self.stepper.reset)

    def _tensors(self) -> Iterator[Tensor]:
        yield self.sums.values
        yield from itertools.chain(self.model.parameters(), self.model.buffers())
