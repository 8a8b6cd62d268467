"""What is counted over the images of an epoch, on the device, so that no step waits for it.

To add a metric, give it an entry in ``METRICS``: records, console and evaluation read them there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tally
from pipeline.run import processes

COUNTED = ("loss", "top1", "top5")  # what kernels.tally sums up, before the number of images


@dataclass(frozen=True)
class Metric:
    """A figure over the images of an epoch: ``mean`` of a sum over its batches.

    ``sum(logits, labels)`` takes logits (N, C) and labels (N,) int64, of which negative ones do not
    count, and returns a 0-dim tensor on their device; it must not wait for the device. None stands
    for what the fused kernel ``kernels.tally`` counts. ``mean(total, images)`` makes the figure of
    the sum over ``images`` images. Records hold it as ``val_<name>`` and, with ``in_training``, as
    ``train_<name>``.
    """

    name: str
    label: str  # what people read, such as "top-1"
    mean: Callable[[float, int], float]
    sum: Callable[[Tensor, Tensor], Tensor] | None = None
    in_training: bool = False
    unit: str = "%"

    def digits(self, value: float) -> str:
        """``value`` for people: with two decimals, or with four where there is no unit."""
        return format(value, ".2f" if self.unit else ".4f")


def share(total: float, images: int) -> float:
    """``total`` of ``images`` images in per cent; 0 where there are none."""
    return 100 * total / max(images, 1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", lambda total, n: total / max(n, 1), in_training=True, unit=""),
        Metric("top1", "top-1", share, in_training=True),
        Metric("top5", "top-5", share),
    )
}


class Sums:
    """The sums of all ``METRICS`` and the number of images, (metrics + 1,) float64 on ``device``.

    A batch whose loss is not finite is left out of all of them, and so is an image whose label is
    negative (``pipeline.data.loader.IGNORED``).
    """

    def __init__(self, device: torch.device) -> None:
        self.further = [metric for metric in METRICS.values() if metric.name not in COUNTED]
        self.names = metric_names()
        self.values = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.counted = self.values[: len(COUNTED) + 1]

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        loss: Tensor,
        watch: Tensor | None = None,
        everywhere: Tensor | None = None,
    ) -> None:
        """Add a batch, and its step to ``watch``: see ``kernels.tally``."""
        tally(self.counted, logits, labels, loss, watch, everywhere)
        for place, metric in enumerate(self.further, len(self.counted)):
            assert metric.sum is not None, f"metric {metric.name} has no sum"
            total = metric.sum(logits, labels).to(torch.float64)
            self.values[place] += torch.where(loss.isfinite(), total, 0)

    def reset(self) -> None:
        """Start anew, in the same tensor."""
        self.values.zero_()

    def means(self) -> dict[str, float]:
        """The figure of each metric by its name, and ``images``, over all processes.

        Waits for the device and for the other processes.
        """
        totals = dict(zip(self.names, processes.gather(self.values).sum(0).tolist(), strict=True))
        images = int(totals.pop("images"))
        means = {name: METRICS[name].mean(total, images) for name, total in totals.items()}
        return {**means, "images": images}


def of_training(means: dict[str, float]) -> dict[str, float]:
    """Those of the ``means`` that are told of training images too."""
    return {name: means[name] for name in METRICS if METRICS[name].in_training}


def metric_names() -> tuple[str, ...]:
    """The names of what ``Sums`` counts, in its order."""
    further = [metric.name for metric in METRICS.values() if metric.name not in COUNTED]
    return (*COUNTED, "images", *further)


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """The cross-entropy of logits (N, C), in at least fp32, with labels (N,) or shares of the
    classes (N, C): the mean, 0-dim, or with ``reduction="none"`` that of each image, (N,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction=reduction)
