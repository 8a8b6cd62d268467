"""The one contract between loaders and the trainer.

A loader is a pure function: what batch number ``b`` of epoch ``e`` holds depends on the seed,
``e`` and ``b`` alone. A loader therefore has no state to save, and resuming is asking for the
batches from ``b`` on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    pass

IGNORED = -100  # the label of an image that only fills a batch up; torch's losses leave it out


class Batch(NamedTuple):
    """One batch on the training device."""

    images: torch.Tensor  # (N, 3, H, W), channels_last, normalised, of the dtype of image_dtype
    labels: torch.Tensor  # (N,) int64; IGNORED where an image only fills the batch up


class Loader(Protocol):
    """What the trainer asks of every data source."""

    images: int  # how many images one epoch delivers
    left: int  # how many it leaves out, because they fill no batch
    classes: tuple[str, ...]  # class names; a label is an index into them
    fingerprint: str  # changes when the data set changes

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of epoch ``epoch`` (both from 0)."""
        ...


class Cursor(Protocol):
    """A place in a loader's epochs that lies on the device, where a captured step can move it."""

    def seek(self, epoch: int, start: int = 0) -> None:
        """Let the next batch be number ``start`` of ``epoch`` (both from 0)."""
        ...

    def look_ahead(self, epoch: int) -> None:
        """Make ready what ``seek`` in ``epoch`` needs, while the device is still at work."""
        ...

    def draw(self) -> Batch:
        """The next batch; reads and writes the same tensors every time."""
        ...

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that ``draw`` reads and writes."""
        ...


@runtime_checkable
class ResidentLoader(Loader, Protocol):
    """A loader whose images lie on the device."""

    def cursor(self) -> Cursor:
        """A new place in the epochs."""
        ...


def image_dtype(precision: str, device: torch.device, *, resident: bool = False) -> torch.dtype:
    """The dtype in which images reach the network under ``train.precision`` on ``device``.

    Half precision where the network casts to it anyway, float64 to verify, else float32. Only a
    ``resident`` loader gives bfloat16, which DALI does not.
    """
    assert precision != "auto", "pipeline.train.precision settles it first"
    if precision == "fp64":
        return torch.float64
    if device.type != "cuda" or precision == "fp32":
        return torch.float32
    return torch.bfloat16 if resident and precision == "bf16" else torch.float16
