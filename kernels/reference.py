"""The specification: every op of this folder in plain PyTorch.

The kernels are tested against these functions, and CPU tensors and float64 run on them.
"""

from collections.abc import Sequence

import torch

from kernels.estimators import get_estimator


def sign(x: torch.Tensor) -> torch.Tensor:
    """+1 where x >= 0 (so for 0 and -0 too), -1 where x < 0, NaN where x is NaN.

    Any shape, any floating dtype; the result has x's. The official code gives 0 at 0, which
    leaves a few activations ternary under AMP, and hides a NaN behind a 0.
    """
    # Adding 0 makes -0 a 0.
    return _keep_nan(torch.copysign(x.new_ones(()), x + 0), x)


def binarize_backward(
    grad: torch.Tensor, x: torch.Tensor, params: torch.Tensor, estimator: str
) -> torch.Tensor:
    """grad * h(x) with ``estimator``'s factor h; x's shape and dtype, computed in at least fp32."""
    compute = torch.promote_types(x.dtype, torch.float32)
    factor = get_estimator(estimator).factor(x.to(compute), params.to(compute))
    return _keep_nan((grad.to(compute) * factor).to(x.dtype), x)


def _keep_nan(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # A sum is cheap and NaN if an element is; only then is it worth looking at each.
    return y.masked_fill_(x.isnan(), torch.nan) if x.sum().isnan() else y


def weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """mean |w| over the whole tensor, 0-dim: a binary layer convolves with scale * sign(w).

    One scalar per layer, not one per channel, and not detached (ReSTE's official code).
    """
    return weight.abs().mean()


def pack(x: torch.Tensor) -> torch.Tensor:
    """x >= 0 as bits, 8 to a byte from the lowest: (n,) floating point -> (ceil(n / 8),) uint8."""
    bits = x.new_zeros(-(-len(x) // 8), 8, dtype=torch.bool)
    torch.ge(x, 0, out=bits.view(-1)[: len(x)])
    # 8 bools are one integer whose byte j is 0 or 1. The factor moves each of them to bit 56 + j;
    # no two of all the products meet, so nothing is carried.
    return ((bits.view(torch.int64) * 0x0102040810204080) >> 56).view(-1).to(torch.uint8)


def unpack(packed: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """+1 for a bit that is 1, else -1: (ceil(count / 8),) uint8 -> (count,) of ``dtype``."""
    byte = torch.arange(256, device=packed.device)
    signs = (byte[:, None] >> byte[:8] & 1) * 2 - 1  # a row for every byte
    return signs.to(dtype).index_select(0, packed.int()).view(-1)[:count]


def crop_flip_normalize(
    images: torch.Tensor,
    index: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    crop: Sequence[torch.Tensor],
    padding: int,
) -> torch.Tensor:
    """Takes images[index], pads, crops, mirrors (unless ``crop``, (top, left, flip), is empty),
    then (x / 255 - mean) / std: (N, H, W, C) uint8 -> (B, C, H, W) of ``dtype``, channels_last."""
    chosen = images.index_select(0, index)
    if crop:
        top, left, flip = crop
        chosen = _crop_flip(chosen, top, left, flip, padding)
    return _normalize(chosen, mean, std).to(dtype).permute(0, 3, 1, 2)


def _crop_flip(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor, padding: int
) -> torch.Tensor:
    """Pads with ``padding`` black pixels, crops to the old size at (top, left), then mirrors."""
    n, height, width, channels = images.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(n, tall, wide, channels)
    padded[:, padding : padding + height, padding : padding + width] = images
    number, row, column = (torch.arange(k, device=images.device) for k in (n, height, width))
    rows = number[:, None] * tall + top[:, None] + row
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - column, column)
    pixels = rows[:, :, None] * wide + columns[:, None, :]
    return padded.view(-1, channels).index_select(0, pixels.view(-1)).view(images.shape)


def _normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    # Constants as wide as a row: along 3 channels alone a CPU takes five times as long. And a
    # tensor of 255, since CUDA multiplies by the reciprocal of a plain number.
    white, width = mean.new_full((1,), 255), images.shape[2]
    x = images.to(torch.float32).flatten(2).div_(white)
    return x.sub_(mean.repeat(width)).div_(std.repeat(width)).view(images.shape)
