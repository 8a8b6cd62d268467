"""Schedules of a training, as pure functions of numbers."""

import math


def learning_rate(epoch: int, epochs: int, lr: float, warmup: int = 0) -> float:
    """The learning rate of ``epoch`` (from 0): a cosine to 0, after ``warmup`` linear epochs.

    lr (e + 1) / W for e < W, else lr / 2 (1 + cos(pi (e - k) / (E - k))) with k = max(W - 1, 0).
    The official scheduler is off by four epochs after its warm-up; this is the formula that its
    own resume uses.
    """
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    start = max(warmup - 1, 0)
    return lr / 2 * (1 + math.cos(math.pi * (epoch - start) / (epochs - start)))


def progress(epoch: int, epochs: int) -> float:
    """How far the training is at ``epoch`` (from 0), in [0, 1), for the estimator's schedule."""
    return epoch / epochs
