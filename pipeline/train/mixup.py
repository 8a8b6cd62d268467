"""Mixup: images are blended in pairs, and so are their labels (Zhang et al., ICLR 2018).

The share of the first image is one number for each step, drawn from Beta(a, a). A pair are the
images 2k and 2k + 1 of a batch, which comes in random order. They lie in the same process, whatever
the number of processes, and each is blended with the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.loader import Batch

ATTEMPTS = 32  # pairs of uniforms; each of them is taken with a probability of at least 1/2
DRAWS = 2 * ATTEMPTS


class Mixed(NamedTuple):
    """A batch of blended images."""

    images: Tensor  # as in a Batch
    labels: Tensor  # (N,) int64, of the image that has the larger share
    targets: Tensor  # (N, C), the shares of all classes, which sum to 1


def mixed(batch: Batch, share: Tensor, classes: int) -> Mixed:
    """``batch``, of an even number of images, each blended with the other one of its pair, of which
    it keeps ``share`` (1,), at least 1/2; there are so many ``classes``."""
    images, labels = batch
    dtype = torch.promote_types(images.dtype, torch.float32)
    targets = (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)
    nhwc = _blended(images.permute(0, 2, 3, 1), share)
    return Mixed(nhwc.permute(0, 3, 1, 2), labels, _blended(targets, share))


def _blended(values: Tensor, share: Tensor) -> Tensor:
    """``values`` (N, ...), of which each pair of rows is blended."""
    pairs = values.unflatten(0, (-1, 2))
    return torch.lerp(pairs.flip(1), pairs, share.to(values.dtype)).flatten(0, 1)


def larger_share(draws: Tensor, alpha: float) -> Tensor:
    """The larger part of a share drawn from Beta(alpha, alpha), for alpha up to 1, by the uniforms
    ``draws`` (1, DRAWS) float64; (1,) float64.

    As u^(1/alpha) / (u^(1/alpha) + v^(1/alpha)) for the first uniform pair whose sum there is at
    most 1 (Joehnk, 1964), in logarithms, which cannot underflow. Images change places in a pair
    with the smaller share, so that the larger one loses nothing.
    """
    first, second = ((1 - draws).log() / alpha).chunk(2, dim=1)
    taken = (first.exp() + second.exp() <= 1).int().argmax(1, keepdim=True)
    share = (first - second).gather(1, taken).sigmoid()[:, 0]
    return torch.maximum(share, 1 - share)
