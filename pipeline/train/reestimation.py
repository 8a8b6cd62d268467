"""Batch norm's statistics, taken anew for an evaluation.

Weights of ±1 go on flipping, and the running statistics, a mean over many steps, stay behind them
(Nagel et al., "Overcoming oscillations in quantization-aware training", ICML 2022). Averaged
weights have never been trained with any statistics (Izmailov et al., "Averaging weights leads to
wider optima and better generalization", UAI 2018). Both take means over some batches instead.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Loader
from pipeline.run.config import Config
from pipeline.train.average import copy_buffers
from pipeline.train.gradients import parts_of
from pipeline.train.graph import Graphs
from pipeline.train.precision import autocast
from pipeline.train.state import TrainState, statistics_of
from pipeline.train.stepper import Stepper


class Reestimation:
    """Lets the twin of ``state`` have the weights that are evaluated, and statistics of its own.

    A statistic is the mean, over the first ``train.reestimate_bn`` batches of the next epoch, of
    the mean or the unbiased variance in a batch; the parts of a step that takes its batch in parts
    count as batches. Nothing but the twin changes. With ``graphs`` a batch is one replay.
    """

    def __init__(
        self,
        state: TrainState,
        loader: Loader,
        config: Config,
        device: torch.device,
        graphs: Graphs | None = None,
    ) -> None:
        assert state.twin is not None
        self.state, self.twin = state, state.twin
        self.config, self.device = config, device
        self.steps = min(config.train.reestimate_bn, len(loader))
        self.statistics = [*statistics_of(self.twin).values()]
        self.sums = [torch.zeros_like(each) for each in self.statistics]
        for module in self.twin.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = 1.0  # what is "running" is then of one batch
        self.stepper = Stepper(loader, self._add, self._tensors, graphs)

    @torch.no_grad()
    def __call__(self, after_batch: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Take them; ``after_batch`` is called after each batch with the number of batches before
        it and that of all. Does not wait for the device."""
        source, parts = self.state.averaged, self.config.train.grad_accumulation
        torch._foreach_copy_([*self.twin.parameters()], [*source.parameters()])
        copy_buffers(self.twin, source)
        torch._foreach_zero_(self.sums)
        self.twin.train()
        steps = itertools.islice(self.stepper.epoch(self.state.epoch + 1), self.steps)
        for done, _ in enumerate(steps):
            after_batch(done, self.steps)
        torch._foreach_copy_(self.statistics, self.sums)
        torch._foreach_div_(self.statistics, self.steps * parts)
        self.state.reestimated = self.state.epoch + 1

    def _add(self, batch: Batch) -> None:
        for part in parts_of(batch, self.config.train.grad_accumulation):
            with autocast(self.config, self.device):
                self.twin(part.images)
            torch._foreach_add_(self.sums, self.statistics)

    def _tensors(self) -> Iterator[Tensor]:
        return itertools.chain(self.sums, self.twin.parameters(), self.twin.buffers())


def make_reestimation(
    state: TrainState,
    loader: Loader,
    config: Config,
    device: torch.device,
    graphs: Graphs | None = None,
) -> Reestimation | None:
    """That of ``state``, or None where ``train.reestimate_bn`` is 0."""
    return None if state.twin is None else Reestimation(state, loader, config, device, graphs)
