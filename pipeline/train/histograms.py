"""Histograms of the latent weights behind the binary ones, layer by layer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models import BinaryNetwork
from pipeline.train.state import TrainState

BINS = 64  # an even number, so that zero, where a weight's sign changes, is an edge


def histogram_records(state: TrainState, every: int) -> Iterator[dict[str, Any]]:
    """A record of the weights as they are, if the epoch that ends is the last of ``every`` epochs;
    none where ``every`` is 0, or where no weight is binary."""
    if every and (state.epoch + 1) % every == 0 and state.model.binary_convs():
        yield {"kind": "histograms", "epoch": state.epoch, "weights": histograms(state.model)}


@torch.no_grad()
def histograms(model: BinaryNetwork) -> dict[str, dict[str, Any]]:
    """For each binary convolution of ``model`` the largest magnitude of its weights, "limit", and
    how many of them lie in each of ``BINS`` equal parts of -limit to limit, "counts".

    Waits for the device once, when all layers are counted.
    """
    convs = model.binary_convs()
    weights = [conv.weight.detach() for conv in convs.values()]
    limits = torch.stack(torch._foreach_norm(weights, torch.inf))
    counts = torch.stack([_counts(w, limit) for w, limit in zip(weights, limits, strict=True)])
    found = zip(convs, limits.tolist(), counts.tolist(), strict=True)
    return {name: {"limit": limit, "counts": each} for name, limit, each in found}


def _counts(weight: Tensor, limit: Tensor) -> Tensor:
    tiny = torch.finfo(weight.dtype).tiny  # all weights may be zero
    place = (weight.flatten() / limit.clamp(min=tiny) * (BINS // 2)).floor_().long()
    place = (place + BINS // 2).clamp_(0, BINS - 1)  # the limit itself is in the last bin
    return place.new_zeros(BINS).scatter_add_(0, place, place.new_ones(()).expand_as(place))
