"""Sums over an epoch, kept on the device so that no step waits for it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tally
from pipeline.run import processes


class Sums:
    """Loss, top-1 and top-5 hits and the number of images, summed on ``device``.

    A batch whose loss is not finite is left out of all four, and so is an image whose label is
    negative (``pipeline.data.loader.IGNORED``).
    """

    NAMES = ("loss", "top1", "top5", "images")

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        loss: Tensor,
        watch: Tensor | None = None,
        bad: Tensor | None = None,
    ) -> None:
        """Add a batch, and its step to ``watch``: see ``kernels.tally``."""
        tally(self.values, logits, labels, loss, watch, bad)

    def reset(self) -> None:
        """Start anew, in the same tensor."""
        self.values.zero_()

    def means(self) -> dict[str, float]:
        """loss per image, top1 and top5 in per cent, and images, over all processes. Waits for the
        device and for them."""
        loss, top1, top5, images = processes.gather(self.values).sum(0).tolist()
        count = max(images, 1)
        return {
            "loss": loss / count,
            "top1": 100 * top1 / count,
            "top5": 100 * top5 / count,
            "images": int(images),
        }


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy of logits (N, C), in at least fp32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
