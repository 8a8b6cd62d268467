"""Schedules of a training, as pure functions of numbers."""

import math
from collections.abc import Sequence

from pipeline.run.config import Config


def learning_rate(
    epoch: int,
    epochs: int,
    lr: float,
    warmup: int = 0,
    schedule: str = "cosine",
    milestones: Sequence[int] = (),
    factor: float = 0.1,
) -> float:
    """The learning rate of ``epoch`` (from 0), after ``warmup`` linear epochs.

    It is lr (e + 1) / W for e < W. With k = max(W - 1, 0), it then follows one of

        cosine   lr / 2 (1 + cos(pi (e - k) / (E - k)))    to 0; Loshchilov & Hutter, ICLR 2017
        linear   lr (1 - (e - k) / (E - k))                to 0; Liu et al. (ReActNet), ECCV 2020
        step     lr factor^n, n: milestones up to e        He et al. (ResNet), CVPR 2016

    The official scheduler is off by four epochs after its warm-up; this is the formula that its
    own resume uses.
    """
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    if schedule == "step":
        return lr * factor ** sum(epoch >= milestone for milestone in milestones)
    start = max(warmup - 1, 0)
    done, whole = epoch - start, epochs - start
    if schedule == "linear":
        return lr * (whole - done) / whole
    return lr / 2 * (1 + math.cos(math.pi * done / whole))


def rate_of(config: Config, epoch: int) -> float:
    """The learning rate of ``epoch`` (from 0) as ``config`` says."""
    optim = config.optim
    shape = optim.schedule, optim.milestone_epochs, optim.factor
    return learning_rate(epoch, config.train.epochs, optim.lr, optim.warmup_epochs, *shape)


def progress(epoch: int, epochs: int) -> float:
    """How far the training is at ``epoch`` (from 0), in [0, 1), for the estimator's schedule."""
    return epoch / epochs
