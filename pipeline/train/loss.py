"""What a training makes small: the cross-entropy with the labels, or the distance to a teacher.

The teacher's logits as targets: Hinton et al., "Distilling the knowledge in a neural network"
(2015); without labels, for binary networks: Liu et al., "ReActNet" (ECCV 2020).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.loader import Batch
from pipeline.run.config import Config
from pipeline.train.metrics import cross_entropy
from pipeline.train.mixup import Mixed
from pipeline.train.precision import autocast, weights_dtype

Lesson = Batch | Mixed  # what a step learns from
Loss = Callable[[Tensor, Lesson], Tensor]  # of the logits (N, C) of a batch, 0-dim


def make_loss(config: Config, teacher: nn.Module | None, device: torch.device) -> Loss:
    """The loss of a training on ``device``; with a ``teacher``, which goes there, its distance."""
    if teacher is not None:
        return Distillation(teacher, config, device)
    smoothing = config.train.label_smoothing
    return lambda logits, batch: cross_entropy(logits, targets_of(batch), smoothing)


class Distillation:
    """The mean of ``divergence`` from what ``teacher`` says of the same images.

    With ``distill.labels``, images for which the teacher names another class than their label, that
    of the larger share in mixup, have the cross-entropy with what they show in its place. The
    teacher stays as it is.
    """

    def __init__(self, teacher: nn.Module, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        placed = teacher.to(device, weights_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher: nn.Module = placed.requires_grad_(False).eval()

    def __call__(self, logits: Tensor, batch: Lesson) -> Tensor:
        """The loss of the ``logits`` (N, C) that the network has for ``batch``, 0-dim."""
        with torch.no_grad(), autocast(self.config, self.device):
            wanted = self.teacher(batch.images)
        losses = divergence(logits, wanted)
        if self.config.distill.labels:
            smoothing = self.config.train.label_smoothing
            by_label = cross_entropy(logits, targets_of(batch), smoothing, reduction="none")
            losses = torch.where(wanted.argmax(1) == batch.labels, losses, by_label)
        return losses.mean()


def targets_of(batch: Lesson) -> Tensor:
    """What the logits of ``batch`` should say: labels (N,), or shares of the classes (N, C)."""
    return batch.targets if isinstance(batch, Mixed) else batch.labels


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of the classes' probabilities p by ``logits`` from those, q,
    by ``wanted``, both (N, C): for each image sum_c q_c log(q_c / p_c), (N,), in at least fp32."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = (F.log_softmax(each.to(dtype), dim=1) for each in (logits, wanted))
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
