"""Values that are not finite: noticed on the device, and kept out of what is saved."""

import torch
from torch import Tensor, nn

from pipeline.run import processes
from pipeline.run.errors import Diverged

MAX_SKIPPED = 20  # fp16 steps in a row whose loss is not finite
MIN_LOSS_SCALE = 2.0**-8  # below it, gradients have been overflowing for long
REMEDY = "lower optim.lr, or go back to a checkpoint"


class Watch:
    """Notices losses and gradients of ``model`` that are not finite; no step waits for it.

    ``skips``: fp16, whose loss scaling skips a step with gradients that are not finite. Batch
    norm's running statistics are then kept as they were before such a step.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, skips: bool) -> None:
        self.model = model
        # The step; how many losses in a row, up to it and at most, were not finite; and the first
        # step whose loss was not: see kernels.tally.
        self.counts = torch.tensor([0, 0, 0, -1], device=device)
        self.statistics = StatisticsGuard(model) if skips else None

    def seek(self, step: int) -> None:
        """Let the next step be number ``step`` of the training."""
        self.counts[0].fill_(step)

    def everywhere(self, loss: Tensor) -> Tensor | None:
        """The sum of the losses of several processes, 0-dim, which is not finite if any of them is
        not; None for one process, whose ``loss`` says it itself."""
        return None if processes.size() == 1 else processes.sum_(loss.clone())

    def keep_statistics(self) -> None:
        """Take the running statistics of a good step over, or put the old ones back."""
        if self.statistics:
            self.statistics.keep(self.counts[1] == 0)

    def check(self, scale: float, step: int, epoch: int, steps_per_epoch: int) -> None:
        """Raise ``Diverged`` if losses, or gradients and so the weights, were not finite.

        ``scale`` is the loss scale. Waits for the device.
        """
        _, _, longest, first = self.counts.tolist()
        since = f"since step {first} (epoch {first // steps_per_epoch})"
        here = f"at step {step} (epoch {epoch})"
        if self.statistics is None and first >= 0:
            raise Diverged(f"the training loss is not finite {since}; {REMEDY}")
        if longest >= MAX_SKIPPED:
            raise Diverged(f"{longest} losses in a row were not finite {since}; {REMEDY}")
        if self.statistics and scale < MIN_LOSS_SCALE:
            raise Diverged(
                f"the gradients keep overflowing {here}: the loss scale fell below "
                f"{MIN_LOSS_SCALE}; {REMEDY}"
            )
        if not nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise Diverged(f"the weights are not finite {here}: a gradient was not; {REMEDY}")

    def load(self, counts: Tensor) -> None:
        """Go on from the ``counts`` of a checkpoint, with the statistics that it brought."""
        self.counts.copy_(counts)
        if self.statistics:
            self.statistics.keep(torch.ones((), dtype=torch.bool, device=self.counts.device))


class StatisticsGuard:
    """Keeps the running statistics of batch norm out of the reach of a step that fp16 skips.

    It makes the statistics of all layers views of one tensor, so that a step needs three launches
    to look after them.
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
