"""The one contract between loaders and the trainer, and the choice of a loader.

A loader is a pure function: what batch number ``b`` of epoch ``e`` holds depends on the seed,
``e`` and ``b`` alone. A loader therefore has no state to save, and resuming is asking for the
batches from ``b`` on.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch


class Batch(NamedTuple):
    """One batch on the training device."""

    images: torch.Tensor  # (N, 3, H, W), float16 or float32, channels_last, normalised
    labels: torch.Tensor  # (N,), int64


class Loader(Protocol):
    """What the trainer asks of every data source."""

    images: int  # how many images one epoch delivers
    classes: tuple[str, ...]  # class names; a label is an index into them
    fingerprint: str  # changes when the data set changes

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of epoch ``epoch`` (both from 0)."""
        ...
