"""The specification: every op of this folder in plain PyTorch.

The kernels are tested against these functions, and what neither Triton nor C++ takes runs on them,
float64 above all. "Rows" are maps seen as (positions, C), where a position is a pixel of an image
of the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.estimators import get_estimator


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0 (and so for 0 and -0), -1 where x < 0, NaN where x is NaN.

    x has any shape and any floating dtype, and the result has the same. The official code gives 0
    at 0, which leaves a few activations ternary under AMP, and hides a NaN behind a 0.
    """
    # Adding 0 turns -0 into 0.
    return _keep_nan(torch.copysign(x.new_ones(()), x + 0), x)


def binarize(x: Tensor, params: Tensor, estimator: str) -> Tensor:
    """sign(x), or sign(f(x)) where ``estimator`` asks for that; in the shape and dtype of x."""
    entry = get_estimator(estimator)
    if entry.triton_surrogate is None:
        return sign(x)
    compute = torch.promote_types(x.dtype, torch.float32)
    return sign(entry.surrogate(x.to(compute), params.to(compute))).to(x.dtype)


def binarize_backward(grad: Tensor, x: Tensor, params: Tensor, estimator: str) -> Tensor:
    """grad * h(x) with the factor h of ``estimator``, NaN where x is NaN.

    It has the shape and dtype of x, and is computed in at least fp32.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    factor = get_estimator(estimator).factor(x.to(compute), params.to(compute))
    return _keep_nan((grad.to(compute) * factor).to(x.dtype), x)


def _keep_nan(y: Tensor, x: Tensor) -> Tensor:
    """y, but NaN where x is NaN; may overwrite y."""
    # A sum is cheap, and it is NaN if any element is. Only then is each element looked at.
    return y.masked_fill_(x.isnan(), torch.nan) if x.sum().isnan() else y


def binarize_weights(
    weights: list[Tensor], params: Tensor, estimator: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``binarize`` of flat weights, joined to one tensor, and mean |w| of each, (layers,)."""
    signs = weights[0].new_empty(sum(map(len, weights)), dtype=dtype)
    for part, w in zip(signs.split([len(w) for w in weights]), weights, strict=True):
        part.copy_(binarize(w, params, estimator))
    return signs, torch.stack([w.abs().mean() for w in weights])


def binarize_weights_backward(
    dsigns: Sequence[Tensor],
    dscales: Sequence[Tensor],
    weights: list[Tensor],
    params: Tensor,
    estimator: str,
) -> Tensor:
    """dsign h(w) + dscale / n sign(w) of flat weights of n elements each, joined to one tensor.

    In the second term sign(0) is 0.
    """
    sizes = [len(w) for w in weights]
    dw = weights[0].new_empty(sum(sizes))
    parts = zip(dw.split(sizes), dsigns, dscales, weights, strict=True)
    for part, dsign, dscale, w in parts:
        part.copy_(binarize_backward(dsign, w, params, estimator))
        part.addcmul_(w.sgn(), dscale, value=1 / len(w))
    return dw


def pack(x: Tensor) -> Tensor:
    """x >= 0 as bits, 8 to a byte and the first one lowest.

    x is (n,) floating point; the result is (ceil(n / 8),) uint8.
    """
    bits = x.new_zeros(-(-len(x) // 8), 8, dtype=torch.bool)
    torch.ge(x, 0, out=bits.view(-1)[: len(x)])
    # 8 bools are one integer whose byte j is 0 or 1. The factor moves each of them to bit 56 + j.
    # No two of the products fall on the same bit, so nothing is carried.
    return ((bits.view(torch.int64) * 0x0102040810204080) >> 56).view(-1).to(torch.uint8)


def unpack(packed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """+1 for a bit that is 1, else -1.

    ``packed`` is (ceil(count / 8),) uint8; the result is (count,) of ``dtype``.
    """
    byte = torch.arange(256, device=packed.device)
    signs = (byte[:, None] >> byte[:8] & 1) * 2 - 1  # one row for each of the 256 bytes
    return signs.to(dtype).index_select(0, packed.int()).view(-1)[:count]


def crop_flip_normalize(
    images: Tensor,
    index: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    crop: Sequence[Tensor],
    padding: int,
) -> Tensor:
    """(x / 255 - mean) / std of the chosen images, which ``crop`` = (top, left, flip) may displace.

    ``images`` is (N, H, W, C) uint8 and ``index`` (B,). The images are padded, cropped at
    (top, left) and mirrored, unless ``crop`` is empty. The result is (B, C, H, W) of ``dtype``,
    channels_last, computed in fp32.
    """
    chosen = images.index_select(0, index)
    if crop:
        top, left, flip = crop
        chosen = _crop_flip(chosen, top, left, flip, padding)
    return _normalize(chosen, mean, std).to(dtype).permute(0, 3, 1, 2)


def _crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """(N, H, W, C), padded by ``padding`` black pixels, cropped at (top, left), then mirrored."""
    n, height, width, channels = images.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(n, tall, wide, channels)
    padded[:, padding : padding + height, padding : padding + width] = images
    number, row, column = (torch.arange(k, device=images.device) for k in (n, height, width))
    rows = number[:, None] * tall + top[:, None] + row
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - column, column)
    pixels = rows[:, :, None] * wide + columns[:, None, :]
    return padded.view(-1, channels).index_select(0, pixels.view(-1)).view(images.shape)


def _normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # The constants are as wide as a row of pixels, since a CPU takes five times as long along the 3
    # channels alone. 255 is a tensor, since CUDA multiplies by the reciprocal of a plain number.
    white, width = mean.new_full((1,), 255), images.shape[2]
    x = images.to(torch.float32).flatten(2).div_(white)
    return x.sub_(mean.repeat(width)).div_(std.repeat(width)).view(images.shape)


def tally(
    sums: Tensor,
    watch: Tensor,
    logits: Tensor,
    labels: Tensor,
    loss: Tensor,
    everywhere: Tensor | None,
    top: int,
) -> None:
    """Add a batch to ``sums`` (4,) and a step to ``watch`` (4,), or (0,) to watch no step.

    The equations are those of ``kernels.count.tally``, with ranks below ``top`` for the third sum.
    """
    own = logits.gather(1, labels.clamp(min=0)[:, None])
    earlier = torch.arange(logits.shape[1], device=labels.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    seen = labels >= 0
    counted = torch.stack([seen & (rank < 1), seen & (rank < top), seen]).sum(1).double()
    batch = torch.cat([loss.double()[None] * counted[2], counted])
    sums.add_(torch.where(loss.isfinite(), batch, 0))
    if len(watch):
        is_bad = (loss if everywhere is None else everywhere).isfinite().logical_not()
        step, in_a_row, longest, first = watch.unbind()
        in_a_row.add_(1).mul_(is_bad)
        longest.copy_(torch.maximum(longest, in_a_row))
        first.copy_(torch.where(is_bad & (first < 0), step, first))
        step.add_(1)


def batch_statistics(
    z: Tensor,
    scale: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """mean and rstd, (C,), of the rows relu(z), or z without ``relu``.

    Moves the running statistics, which are those of scale * relu(z).
    """
    mean, squares = deviations(z, relu)
    running = running_mean, running_var, num_batches_tracked
    return finish_statistics(mean, squares, len(z), scale, *running, momentum, eps)


def deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """The mean and the sum of squared deviations from it, (C,), of the rows relu(z) or z."""
    # This reads the data twice, since a difference of sums of squares would cancel.
    # torch.var_mean takes ten times as long.
    mean = _column_sums(_rectified(z, relu)) / len(z)
    return mean, _column_sums(_deviation(z, mean, relu).square_())


def pack_sums(mean: Tensor, squares: Tensor, n: int) -> Tensor:
    """The ``deviations`` of n positions in a form that adds up over the parts of a batch.

    The result is (2 C + 1,): the sums, the sums of squares and n. It is float64, since a difference
    of sums of squares cancels. n may be 0.
    """
    mean = mean.double() if n else torch.zeros_like(mean, dtype=torch.float64)
    total = mean.new_full((1,), n)
    return torch.cat([n * mean, (squares + n * mean.square() if n else mean), total])


def unpack_sums(sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The ``deviations`` of a whole batch, and its n, from the added ``pack_sums`` of its parts."""
    total, squares, n = sums.split([len(sums) // 2, len(sums) // 2, 1])
    squares = (squares - total.square() / n).clamp(min=0)
    return (total / n).to(dtype), squares.to(dtype), n[0]


def finish_statistics(
    mean: Tensor,
    squares: Tensor,
    n: int | Tensor,
    scale: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """mean and rstd = 1 / sqrt(var + eps / scale^2) from the ``deviations`` of n positions.

    Moves the running statistics by ``momentum`` towards scale * mean and the unbiased
    scale^2 * var, and counts the batch.
    """
    s = 1 if scale is None else scale
    running_mean.lerp_((mean * s).to(running_mean.dtype), momentum)
    running_var.lerp_((squares * (s * s / (n - 1))).to(running_var.dtype), momentum)
    num_batches_tracked.add_(1)
    return mean, (squares / n + eps / (s * s)).rsqrt()


def norm_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    binarized: bool,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """y = weight (u - mean) rstd + bias + residual with u = relu(z) or z, rows; and sign(y).

    The second result is empty, (0,), unless ``binarized``.
    """
    y = torch.addcmul(bias, _deviation(z, mean, relu), weight * rstd)
    if residual is not None:
        y += residual
    y = y.to(z.dtype)
    return y, sign(y) if binarized else y.new_empty(0)


def norm_binarize_reduce(
    dy: Tensor | None,
    dyb: Tensor | None,
    y: Tensor | None,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    params: Tensor,
    estimator: str,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """g = dy + dyb h(y), rows, and the sums of g and of g xhat over the positions, (2, C).

    xhat is (u - mean) rstd. A gradient that is None counts as 0; at least one is given.
    """
    g = dy
    if dyb is not None:
        assert y is not None
        g = binarize_backward(dyb, y, params, estimator)
        g = g if dy is None else g.add_(dy)
    assert g is not None
    wide = g.to(mean.dtype)
    sum_gx = _column_sums(_deviation(z, mean, relu).mul_(wide)) * rstd
    return g, torch.stack([_column_sums(wide), sum_gx])


def scale_gradient(
    sums: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    training: bool,
    eps: float,
) -> Tensor:
    """The gradient of the scale, 0-dim, from the sums of g and of g xhat, (2, C).

    In training it comes from eps / scale^2 alone, since batch norm takes a scale out. In evaluation
    the statistics are fixed, and the scale multiplies u.
    """
    sum_g, sum_gx = sums
    if training:
        return eps / scale**3 * (weight * rstd**2 * sum_gx).sum()
    return (weight * (sum_gx + mean * rstd * sum_g)).sum() / scale


def norm_binarize_apply(
    g: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    count: Tensor | None,
    training: bool,
    relu: bool,
) -> Tensor:
    """dz, rows, from g and the sums of g and of g xhat over ``count`` positions, (2, C).

    ``count`` is None where these positions are those of z, and a tensor where the sums are over
    the batches of all processes.
    """
    slope = weight * rstd
    dz = g.to(mean.dtype) * slope
    if training:  # slope (g - mean(g) - xhat mean(g xhat))
        sum_g, sum_gx = sums / (len(z) if count is None else count)
        dz.sub_(slope * sum_g).addcmul_(_deviation(z, mean, relu), -slope * rstd * sum_gx)
    dz = dz.to(z.dtype)
    if relu:
        dz = torch.ops.aten.threshold_backward(dz, z, 0)  # 0 where z <= 0, and a NaN stays a NaN
    return dz


def norm_prelu_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y = prelu(v) + shift with v = weight (z - mean) rstd + bias + residual, rows; and
    sign(y + offset).

    The second result is empty, (0,), where ``offset`` is None.
    """
    v = torch.addcmul(bias, _deviation(z, mean, False), weight * rstd) + residual
    y = (torch.where(v > 0, v, slope * v) + shift).to(z.dtype)
    return y, y.new_empty(0) if offset is None else sign(y + offset).to(z.dtype)


def norm_prelu_binarize_reduce(
    dy: Tensor | None,
    dyb: Tensor | None,
    z: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
    params: Tensor,
    estimator: str,
) -> tuple[Tensor, Tensor]:
    """The gradient g of v, rows, and sums over the positions, (5, C).

    They are those of g, of g xhat, of the gradient of y, of that where v <= 0 times v, and of the
    gradient that comes by the sign. A gradient that is None counts as 0; at least one is given.
    """
    deviation = _deviation(z, mean, False)
    v = torch.addcmul(bias, deviation, weight * rstd) + residual
    by_sign = torch.zeros_like(v)
    if dyb is not None:
        assert offset is not None
        y = (torch.where(v > 0, v, slope * v) + shift).to(z.dtype)
        by_sign = binarize_backward(dyb, y + offset, params, estimator)
    gy = by_sign if dy is None else by_sign + dy
    g = torch.where(v > 0, gy, slope * gy).to(z.dtype)
    wide = g.to(mean.dtype)
    by_slope = torch.where(v > 0, 0, v) * gy
    sums = [_column_sums(each) for each in (wide, wide * deviation, gy, by_slope, by_sign)]
    sums[1] = sums[1] * rstd
    return g, torch.stack(sums)


WINDOW = 3  # the side of a window of ``max_pool``


def max_pool(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maxima of y over 3 x 3 windows at stride 2 with padding 1, their places, and z there.

    y and z are (N, C, H, W); the results are (N, C, ceil(H / 2), ceil(W / 2)). A place is uint8: 0
    to 8, row by row. Of equal values the first in this order wins, and a NaN wins over all.
    """
    x, at = F.max_pool2d(y, WINDOW, stride=2, padding=1, return_indices=True)
    top = positions(z).gather(1, positions(at))
    corner, middle, width = _windows(at, y)
    at = at.int()
    # The row in the window, 0 to 2, by comparison: a CPU takes several times as long to divide.
    below = (at >= middle).to(torch.uint8).add_((at >= middle + width).to(torch.uint8))
    index = at.sub_(corner).sub_(below.int().mul_(width - WINDOW))
    return x, index.to(torch.uint8), _as_map(top, x)


def unpool(g: Tensor, index: Tensor, y: Tensor) -> Tensor:
    """The gradient of y from that of its ``max_pool``, g, in the dtype of g, channels_last."""
    like = torch.empty_like(y, dtype=g.dtype, memory_format=torch.channels_last)
    window = [WINDOW, WINDOW], [2, 2], [1, 1], [1, 1], False
    at = places(index, y)
    return torch.ops.aten.max_pool2d_with_indices_backward(g, like, *window, at)


def places(index: Tensor, y: Tensor) -> Tensor:
    """The places of maxima as int64 positions in an image of y, row by row."""
    corner, _, width = _windows(index, y)
    below = (index >= WINDOW).int() + (index >= 2 * WINDOW).int()
    return (corner + index.int() + (width - WINDOW) * below).long()


def _windows(pooled: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """The position of the upper left corner of every window, (h, w); that of the beginning of the
    middle row, (h, 1); and the positions in a row."""
    device, dtype = pooled.device, torch.int32
    row, column = (2 * torch.arange(n, device=device, dtype=dtype) for n in pooled.shape[2:])
    width = y.shape[3]
    middle = row[:, None] * width
    return middle - width + column - 1, middle, width


def positions(t: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H W, C), which is a view where t is channels_last."""
    return t.permute(0, 2, 3, 1).flatten(1, 2)


def _as_map(t: Tensor, like: Tensor) -> Tensor:
    """(N, H W, C) in the shape of ``like``, channels_last; undoes ``positions``."""
    n, c, h, w = like.shape
    return t.view(n, h, w, c).permute(0, 3, 1, 2)


def convolve(
    xb: Tensor, weight: Tensor, stride: int, dtype: torch.dtype, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The 3x3 convolution with padding 1, and the ``deviations`` of its rows as stored.

    ``xb`` is (N, I, H, W) and ``weight`` (O, I, 3, 3); the convolution is (N, O, ...) of ``dtype``,
    channels_last. It is computed in fp32, where sums of ±1 are exact.
    """
    z = F.conv2d(xb.float(), weight.float(), stride=stride, padding=1).to(dtype)
    z = z.contiguous(memory_format=torch.channels_last)
    return z, *deviations(z.permute(0, 2, 3, 1).reshape(-1, len(weight)), relu)


def _column_sums(x: Tensor) -> Tensor:
    """The sum over the rows of x, (C,).

    It is taken in 32 groups of rows where that is possible, so that all threads have work even if
    the columns are few.
    """
    groups = 32 if len(x) % 32 == 0 else 1
    return x.view(groups, len(x) // groups, x.shape[1]).sum(1).sum(0)


def _deviation(z: Tensor, mean: Tensor, relu: bool) -> Tensor:
    """relu(z) or z, minus the mean, as a new tensor."""
    u = _rectified(z, relu)
    return u - mean if u is z else u.sub_(mean)


def _rectified(z: Tensor, relu: bool) -> Tensor:
    """relu(z) or z, in at least fp32."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return z.relu() if relu else z
