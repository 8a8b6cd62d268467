"""Values that are not finite: noticed on the device, and kept out of what is saved."""

import torch
from torch import Tensor, nn

MAX_SKIPPED = 20  # fp16 steps in a row whose loss is not finite

MIN_LOSS_SCALE = 2.0**-8  # below it, gradients have been overflowing for long


class StatisticsGuard:
    """Keeps batch norm's running statistics out of the reach of a step that fp16 skips.

    It makes those of all layers views of one tensor, so that looking after them takes three
    launches.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        names = [(norm, name) for norm in norms for name in ("running_mean", "running_var")]
        buffers = [getattr(norm, name) for norm, name in names]
        self.statistics = torch.cat(buffers)
        sizes = [len(buffer) for buffer in buffers]
        for (norm, name), view in zip(names, self.statistics.split(sizes), strict=True):
            setattr(norm, name, view)
        self.backup = self.statistics.clone()

    @torch.no_grad()
    def keep(self, good: Tensor) -> None:
        """Keep the new statistics where ``good`` (0-dim bool), else put the old ones back."""
        torch.where(good, self.statistics, self.backup, out=self.backup)
        self.statistics.copy_(self.backup)
