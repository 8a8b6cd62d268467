"""What stands between two binary convolutions, fused: ReLU, batch norm, residual and sign.

With u = relu(z) (or z), the layer's positive weight scale s, and channel statistics over all
positions of the batch,

    y = gamma (u - mean) rstd + beta + residual        rstd = 1 / sqrt(var + eps / s^2)
    yb = sign(y)                                       gradient: an estimator's h(y)

which is batch norm of s u, since batch norm is invariant to a positive scale but for its eps.
The running statistics are those of s u, as in a network that multiplies s in. Every tensor is
seen as rows of channels, (positions, C), which is how channels_last lies in memory. Forward:
one pass for the statistics, one that writes y and yb. Backward: one pass forms
g = dy + dyb h(y) and both channel sums, one applies batch norm's gradient.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import reference
from kernels._compiled import fusible
from kernels._triton import jit, tl, triton, uses_triton
from kernels.estimators import get_estimator
from kernels.sign import check_params

TILE = 2048  # elements of a program's tile: with more, the backward pass spills registers
PROGRAMS = 512  # of a reduction, at most; each makes one row of partial sums


def batch_statistics(
    z: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    *,
    scale: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """mean and rstd, (C,), of u = relu(z) over the batch; moves the running statistics.

    Args:
        z: (N, C) or (N, C, H, W), fp32, bf16 or fp16 (float64: computed in float64).
        running_mean, running_var: (C,), of s u; updated in place, the variance unbiased.
        num_batches_tracked: 0-dim int64, counted up in place.
        scale: s, 0-dim, positive; None for 1.
        sync: over the batches of all processes of torch.distributed, which may be of different
            sizes: one all-reduce of sum, sum of squares and count.

    Raises ValueError, naming the argument, for shapes, devices or dtypes that do not fit, and for
    fewer than two values per channel, whose variance says nothing (as torch does).
    """
    _check_map("z", z)
    _check_channels(z, running_mean=running_mean, running_var=running_var)
    _check_scale(z, scale)
    if z.numel() <= z.shape[1] and not sync:
        raise ValueError(
            f"expected more than 1 value per channel when training, got input of shape "
            f"{tuple(z.shape)}; use a larger batch"
        )
    with torch.no_grad():
        return _batch_statistics(
            z, scale, running_mean, running_var, num_batches_tracked, momentum, eps, relu, sync
        )


def deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations from it, (C,), of relu(z) or z, (N, C[, H, W])."""
    run = launch_deviations if uses_triton(z) else cpu_deviations
    return run(_rows(z), relu)


def running_statistics(
    running_mean: Tensor, running_var: Tensor, *, scale: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """mean and rstd, (C,), of u from the running statistics of s u, for inference."""
    with torch.no_grad():
        rstd = (running_var + eps).rsqrt()
        return (running_mean, rstd) if scale is None else (running_mean / scale, rstd * scale)


def norm_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    params: Tensor | None = None,
    estimator: str | None = None,
    training: bool = True,
    eps: float = 1e-5,
    relu: bool = True,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """(y, yb) of this file's equations, of z's shape and dtype, channels_last.

    Args:
        z: (N, C) or (N, C, H, W), fp32, bf16 or fp16; arithmetic is fp32. float64 takes the
            reference and stays float64.
        weight, bias: gamma and beta, (C,).
        mean, rstd: (C,), from ``batch_statistics`` if ``training``, whose dependence on z then
            is part of the gradient, else from ``running_statistics``.
        scale: s, 0-dim, positive; None for 1. Its gradient is exact.
        residual: of z's shape, or None.
        sync: as it was for ``batch_statistics``; the backward pass then sums over all processes
            in one collective. The gradients of weight, bias and scale stay this process's.
        params, estimator: as in ``kernels.binarize``; without an estimator yb is y itself.

    A NaN stays a NaN, in y, yb and every gradient that it reaches. Raises ValueError, naming the
    argument, for an unknown estimator and for shapes, devices or dtypes that do not fit.
    Source: the folded eps and the scale's gradient follow from the chain rule; the layout of the
    passes is that of batch norm in cuDNN and apex.
    """
    _check_map("z", z)
    _check_channels(z, weight=weight, bias=bias, mean=mean, rstd=rstd)
    _check_scale(z, scale)
    if residual is not None:
        if residual.shape != z.shape or residual.device != z.device:
            raise ValueError(
                f"residual is {_what(residual)}; it must have the shape and device of z, {_what(z)}"
            )
        residual = residual.to(z.dtype)
    if params is None:
        params = weight.new_empty(0)
    if estimator:
        check_params(params, z.device, estimator)
    options = estimator or "", training, eps, relu, sync and training
    y, yb = _norm_binarize(z, weight, bias, mean, rstd, scale, residual, params, *options)
    return (y, yb) if estimator else (y, y)


def _what(t: Tensor) -> str:
    return f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"


def _check_map(name: str, t: Tensor) -> None:
    if t.dim() not in (2, 4) or not t.is_floating_point():
        raise ValueError(f"{name} is {_what(t)}; it must be floating point, (N, C) or (N, C, H, W)")


def _check_channels(z: Tensor, **vectors: Tensor) -> None:
    for name, vector in vectors.items():
        if vector.shape != z.shape[1:2] or vector.device != z.device:
            raise ValueError(
                f"{name} is {_what(vector)}; it must be ({z.shape[1]},), the channels of z, and on "
                f"{z.device}"
            )
        if not vector.is_floating_point():
            raise ValueError(f"{name} is {_what(vector)}; it must be floating point")


def _check_scale(z: Tensor, scale: Tensor | None) -> None:
    if scale is not None and (scale.dim() or scale.device != z.device):
        raise ValueError(f"scale is {_what(scale)}; it must be 0-dim and on {z.device}")


def _rows(t: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C) as contiguous (positions, C); a view where t is channels_last."""
    rows = t if t.dim() == 2 else t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
    return rows.contiguous()


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """Undo ``_rows``: the shape of ``like``, channels_last."""
    if like.dim() == 2:
        return rows
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _empty(z: Tensor) -> Tensor:
    layout = torch.contiguous_format if z.dim() == 2 else torch.channels_last
    return torch.empty_like(z, memory_format=layout)


# What the ops below are where ``uses_triton`` says no.
cpu_statistics = fusible(reference.batch_statistics)
cpu_deviations = fusible(reference.deviations)
cpu_forward = fusible(reference.norm_binarize)
cpu_reduce = fusible(reference.norm_binarize_reduce)
cpu_apply = fusible(reference.norm_binarize_apply)


@torch.library.custom_op(
    "reste::batch_statistics",
    mutates_args=("running_mean", "running_var", "num_batches_tracked"),
)
def _batch_statistics(
    z: Tensor,
    scale: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    eps: float,
    relu: bool,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    running = running_mean, running_var, num_batches_tracked
    rows = _rows(z)
    if not sync:
        run = launch_statistics if uses_triton(z) else cpu_statistics
        return run(rows, scale, *running, momentum, eps, relu)
    mean, squares = deviations(z, relu)
    sums = reference.pack_sums(mean, squares, len(rows))
    dist.all_reduce(sums)
    merged = reference.unpack_sums(sums, mean.dtype)
    return reference.finish_statistics(*merged, scale, *running, momentum, eps)


@_batch_statistics.register_fake
def _(z, scale, running_mean, running_var, num_batches_tracked, momentum, eps, relu, sync):  # type: ignore[no-untyped-def]
    return torch.empty_like(running_mean), torch.empty_like(running_mean)


@torch.library.custom_op("reste::norm_binarize", mutates_args=())
def _norm_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    residual: Tensor | None,
    params: Tensor,
    estimator: str,
    training: bool,
    eps: float,
    relu: bool,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    """y, and yb or, without an estimator, nothing (0,)."""
    run = launch_forward if uses_triton(z) else cpu_forward
    rows = None if residual is None else _rows(residual)
    y, yb = run(_rows(z), weight, bias, mean, rstd, rows, bool(estimator), relu)
    return _shaped(y, z), _shaped(yb, z) if estimator else yb


@_norm_binarize.register_fake
def _(z, weight, bias, mean, rstd, scale, residual, params, estimator, training, eps, relu, sync):  # type: ignore[no-untyped-def]
    return _empty(z), _empty(z) if estimator else z.new_empty(0)


@torch.library.custom_op("reste::norm_binarize_backward", mutates_args=())
def _norm_binarize_backward(
    dy: Tensor | None,
    dyb: Tensor | None,
    y: Tensor | None,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    params: Tensor,
    estimator: str,
    training: bool,
    eps: float,
    relu: bool,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(g, dz, (dbias, dweight), dscale); g is empty (0,) where it is dy, dscale without a scale."""
    on_gpu, rows = uses_triton(z), _rows(z)
    dy, dyb, y = (None if t is None else _rows(t) for t in (dy, dyb, y))
    reduce = launch_reduce if on_gpu else cpu_reduce
    g, sums = reduce(dy, dyb, y, rows, mean, rstd, params, estimator, relu)
    everywhere, count = sums, None
    if sync:
        packed = torch.cat([sums.flatten(), sums.new_full((1,), len(rows))])
        dist.all_reduce(packed)
        everywhere, count = packed[:-1].view_as(sums), packed[-1]
    final = (g, rows, weight, mean, rstd, everywhere, count, training, relu)
    if on_gpu:
        dz, dscale = launch_apply(*final, scale, sums, eps)
    else:
        dz, dscale = cpu_apply(*final), weight.new_empty(0)
        if scale is not None:
            dscale = reference.scale_gradient(sums, weight, mean, rstd, scale, training, eps)
    g = z.new_empty(0) if dyb is None else _shaped(g, z)
    return g, _shaped(dz, z), sums, dscale


@_norm_binarize_backward.register_fake
def _(dy, dyb, y, z, weight, mean, rstd, scale, params, estimator, training, eps, relu, sync):  # type: ignore[no-untyped-def]
    nothing = weight.new_empty(0)
    return (
        z.new_empty(0) if dyb is None else _empty(z),
        _empty(z),
        mean.new_empty(2, len(mean)),
        nothing if scale is None else torch.empty_like(scale),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    z, weight, _, mean, rstd, scale, residual, params, *ctx.options = inputs
    ctx.has_residual = residual is not None
    y = output[0] if ctx.options[0] else None
    ctx.save_for_backward(y, z, weight, mean, rstd, scale, params)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dyb):  # type: ignore[no-untyped-def]
    dyb = dyb if ctx.options[0] else None
    if dy is None and dyb is None:
        return (None,) * 13
    y, *saved = ctx.saved_tensors
    g, dz, sums, dscale = _norm_binarize_backward(dy, dyb, y, *saved, *ctx.options)
    dbias, dweight = sums.to(saved[1].dtype)
    dresidual = (dy if dyb is None else g) if ctx.has_residual else None
    dscale = dscale if saved[4] is not None else None
    return dz, dweight, dbias, None, None, dscale, dresidual, *(None,) * 6


_norm_binarize.register_autograd(_backward, setup_context=_setup_context)


COMBINE = {"BLOCK_P": 512, "BLOCK_C": 4}  # tiles of partial sums: all programs at once


class _Grid:
    """How rows of channels are cut into tiles, by default of ``TILE`` elements, and reductions
    into programs."""

    def __init__(self, rows: Tensor, block_m: int = 0, block_c: int = 0) -> None:
        self.rows, self.channels = rows.shape
        self.block_c = block_c or min(triton.next_power_of_2(self.channels), 128)
        self.block_m = block_m or TILE // self.block_c
        self.columns = triton.cdiv(self.channels, self.block_c)
        tiles = triton.cdiv(self.rows, self.block_m)
        self.tiles = (tiles, self.columns)
        # Each program of a reduction takes ``span`` rows; the last one may take fewer.
        self.span = self.block_m * triton.cdiv(tiles, max(1, PROGRAMS // self.columns))
        self.programs = triton.cdiv(self.rows, self.span)
        self.channel_blocks = (triton.cdiv(self.channels, COMBINE["BLOCK_C"]),)
        self.blocks = {"BLOCK_M": self.block_m, "BLOCK_C": self.block_c}

    def partials(self, like: Tensor) -> Tensor:
        shape = (2, self.programs, self.channels)
        return torch.empty(shape, dtype=torch.float32, device=like.device)


def launch_statistics(
    z: Tensor,
    scale: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """``reference.batch_statistics`` in Triton."""
    grid, partials = _launch_partials(z, relu)
    mean, rstd = torch.empty_like(running_mean), torch.empty_like(running_var)
    _combine_statistics_kernel[grid.channel_blocks](
        *partials,
        running_mean if scale is None else scale,
        *(running_mean, running_var, num_batches_tracked, mean, rstd),
        *(grid.programs, grid.rows, grid.channels, grid.span, momentum, eps),
        HAS_SCALE=scale is not None,
        FINISH=True,
        **COMBINE,
    )
    return mean, rstd


def launch_deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """``reference.deviations`` in Triton."""
    if not len(z):
        nothing = z.new_zeros(z.shape[1], dtype=torch.float32)
        return nothing, nothing
    return combine_deviations(*_launch_partials(z, relu))


def combine_deviations(grid: _Grid, partials: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations, (C,), from those of the programs, (2, programs, C)."""
    mean, squares = torch.empty_like(partials[0, 0]), torch.empty_like(partials[0, 0])
    _combine_statistics_kernel[grid.channel_blocks](
        *partials,
        *(mean, mean, mean, mean, mean, squares),  # what only FINISH looks at is not there
        *(grid.programs, grid.rows, grid.channels, grid.span, 0.0, 0.0),
        HAS_SCALE=False,
        FINISH=False,
        **COMBINE,
    )
    return mean, squares


def _launch_partials(z: Tensor, relu: bool) -> tuple[_Grid, Tensor]:
    grid = _Grid(z)
    partials = grid.partials(z)
    _statistics_kernel[(grid.programs, grid.columns)](
        z, *partials, grid.rows, grid.channels, grid.span, RELU=relu, **grid.blocks
    )
    return grid, partials


def launch_forward(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    sign: bool,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """``reference.norm_binarize`` in Triton."""
    y = torch.empty_like(z)
    yb = torch.empty_like(z) if sign else z.new_empty(0)
    if not z.numel():
        return y, yb
    grid = _Grid(z)
    _forward_kernel[grid.tiles](
        *(z, weight, bias, mean, rstd, z if residual is None else residual, y, yb),
        *(grid.rows, grid.channels),
        RELU=relu,
        HAS_RESIDUAL=residual is not None,
        SIGN=sign,
        **grid.blocks,
    )
    return y, yb


def launch_reduce(
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
    """``reference.norm_binarize_reduce`` in Triton."""
    has_sign = dyb is not None
    g = torch.empty_like(z) if has_sign else dy
    assert g is not None
    if not z.numel():
        return g, mean.new_zeros(2, len(mean))
    grid = _Grid(z)
    partials = grid.partials(z)
    _reduce_kernel[(grid.programs, grid.columns)](
        *(z if t is None else t for t in (dy, dyb, y)),
        *(z, mean, rstd, params.float(), g, *partials),
        *(grid.rows, grid.channels, grid.span),
        FACTOR=get_estimator(estimator).triton_factor if has_sign else None,
        HAS_DY=dy is not None,
        RELU=relu,
        **grid.blocks,
    )
    sums = torch.empty_like(partials[:, 0])
    _combine_sums_kernel[grid.channel_blocks](
        *partials, *sums, grid.programs, grid.channels, **COMBINE
    )
    return g, sums


def launch_apply(
    g: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    count: Tensor | None,
    training: bool,
    relu: bool,
    scale: Tensor | None,
    own_sums: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``reference.norm_binarize_apply`` and, from this process's ``own_sums``,
    ``reference.scale_gradient`` in Triton; without a scale that is empty (0,)."""
    dz = torch.empty_like(z)
    dscale = weight.new_empty(0) if scale is None else torch.empty_like(scale)
    if not z.numel():
        return dz, dscale.zero_()
    grid = _Grid(z)
    _backward_kernel[grid.tiles](
        *(g, z, weight, mean, rstd, *sums, mean if count is None else count, dz),
        *(scale, *own_sums, dscale, grid.rows, grid.channels, eps),
        COUNTED=count is not None,
        TRAINING=training,
        RELU=relu,
        ALL_C=triton.next_power_of_2(grid.channels),
        **grid.blocks,
    )
    return dz, dscale


@jit
def _rectify(z, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    z = z.to(tl.float32)
    return tl.where(z < 0, 0.0, z) if RELU else z  # a NaN stays a NaN


@jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    mean_ptr,
    squares_ptr,
    rows,
    channels,
    span,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of ``span`` rows, each (programs, channels)."""
    program = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    # Deviations from the mean of the first tile: their squares do not cancel, however large the
    # mean is.
    inside = (line < count)[:, None] & (c < channels)[None, :]
    at = (begin + line).to(tl.int64)[:, None] * channels + c[None, :]
    u = _rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
    shift = tl.sum(u, 0) / tl.minimum(count, BLOCK_M)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, span, BLOCK_M):
        inside = (first + line < count)[:, None] & (c < channels)[None, :]
        at = (begin + first + line).to(tl.int64)[:, None] * channels + c[None, :]
        u = _rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
        deviation = tl.where(inside, u - shift[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    offset = tl.sum(total, 0) / count
    to = program.to(tl.int64) * channels + c
    tl.store(mean_ptr + to, shift + offset, mask=c < channels)
    tl.store(squares_ptr + to, tl.sum(squares, 0) - offset * offset * count, mask=c < channels)


@jit
def _combine_statistics_kernel(  # type: ignore[no-untyped-def]
    means_ptr,
    squares_ptr,
    scale_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    mean_ptr,
    rstd_ptr,
    programs,
    rows,
    channels,
    span,
    momentum,
    eps,
    HAS_SCALE: tl.constexpr,
    FINISH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Chan, Golub and LeVeque's sums over the programs; ``FINISH``: and what follows from them."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    line = tl.arange(0, BLOCK_P)
    first = tl.load(means_ptr + c, mask=here, other=0.0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        p = start + line
        inside = (p < programs)[:, None] & here[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        count = tl.minimum(rows - p * span, span).to(tl.float32)[:, None]
        means = tl.load(means_ptr + at, mask=inside, other=0.0)
        between = tl.where(inside, means - first[None, :], 0.0)
        total += between * count
        squares += between * between * count + tl.load(squares_ptr + at, mask=inside, other=0.0)
    offset = tl.sum(total, 0) / rows
    mean = first + offset
    deviations = tl.maximum(tl.sum(squares, 0) - offset * offset * rows, 0.0)
    deviations = tl.where(mean == mean, deviations, mean)  # a NaN stays a NaN
    tl.store(mean_ptr + c, mean, mask=here)
    if not FINISH:
        tl.store(rstd_ptr + c, deviations, mask=here)
        return
    var = deviations / rows
    scale = tl.load(scale_ptr).to(tl.float32) if HAS_SCALE else 1.0
    tl.store(rstd_ptr + c, 1.0 / tl.sqrt(var + eps / (scale * scale)), mask=here)
    old = tl.load(running_mean_ptr + c, mask=here)
    tl.store(running_mean_ptr + c, old + momentum * (scale * mean - old), mask=here)
    old = tl.load(running_var_ptr + c, mask=here)
    unbiased = scale * scale * var * (rows / (rows - 1.0))
    tl.store(running_var_ptr + c, old + momentum * (unbiased - old), mask=here)
    if tl.program_id(0) == 0:
        tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    y_ptr,
    yb_ptr,
    rows,
    channels,
    RELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    mean = tl.load(mean_ptr + c, mask=here, other=0.0)
    slope = tl.load(rstd_ptr + c, mask=here, other=0.0) * tl.load(
        weight_ptr + c, mask=here, other=0.0
    )
    bias = tl.load(bias_ptr + c, mask=here, other=0.0)
    u = _rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
    y = (u - mean[None, :]) * slope[None, :] + bias[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)
    if SIGN:  # of y as it is stored, which the backward pass reads
        stored = y.to(tl.float32)
        sign = tl.where(stored >= 0, 1.0, tl.where(stored < 0, -1.0, stored))
        tl.store(yb_ptr + at, sign.to(yb_ptr.dtype.element_ty), mask=inside)


@jit
def _reduce_kernel(  # type: ignore[no-untyped-def]
    dy_ptr,
    dyb_ptr,
    y_ptr,
    z_ptr,
    mean_ptr,
    rstd_ptr,
    params_ptr,
    g_ptr,
    sum_g_ptr,
    sum_gx_ptr,
    rows,
    channels,
    span,
    FACTOR: tl.constexpr,
    HAS_DY: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """g = dy + dyb h(y), and the partial sums of g and g xhat, each (programs, channels)."""
    program = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    mean = tl.load(mean_ptr + c, mask=here, other=0.0)
    sum_g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, span, BLOCK_M):
        inside = (first + line < count)[:, None] & here[None, :]
        at = (begin + first + line).to(tl.int64)[:, None] * channels + c[None, :]
        g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        if HAS_DY:
            g += tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if FACTOR is not None:
            y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
            dyb = tl.load(dyb_ptr + at, mask=inside, other=0.0).to(tl.float32)
            g += tl.where(y == y, dyb * FACTOR(y, params_ptr), y)
            stored = g.to(g_ptr.dtype.element_ty)
            tl.store(g_ptr + at, stored, mask=inside)
            g = stored.to(tl.float32)  # what the next pass reads
        u = _rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
        sum_g += g
        sum_gx += g * (u - mean[None, :])
    to = program.to(tl.int64) * channels + c
    tl.store(sum_g_ptr + to, tl.sum(sum_g, 0), mask=here)
    rstd = tl.load(rstd_ptr + c, mask=here, other=0.0)
    tl.store(sum_gx_ptr + to, tl.sum(sum_gx, 0) * rstd, mask=here)


@jit
def _combine_sums_kernel(  # type: ignore[no-untyped-def]
    partial_g_ptr,
    partial_gx_ptr,
    sum_g_ptr,
    sum_gx_ptr,
    programs,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < programs)[:, None] & here[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        sum_g += tl.load(partial_g_ptr + at, mask=inside, other=0.0)
        sum_gx += tl.load(partial_gx_ptr + at, mask=inside, other=0.0)
    tl.store(sum_g_ptr + c, tl.sum(sum_g, 0), mask=here)
    tl.store(sum_gx_ptr + c, tl.sum(sum_gx, 0), mask=here)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    z_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sum_g_ptr,
    sum_gx_ptr,
    count_ptr,
    dz_ptr,
    scale_ptr,
    own_sum_g_ptr,
    own_sum_gx_ptr,
    dscale_ptr,
    rows,
    channels,
    eps,
    COUNTED: tl.constexpr,
    TRAINING: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALL_C: tl.constexpr,
):
    """dz = gamma rstd (g - mean(g) - xhat mean(g xhat)) where z > 0, or without RELU anywhere; and
    one program gives the scale's gradient, which would be a launch of its own."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    rstd = tl.load(rstd_ptr + c, mask=here, other=0.0)
    slope = tl.load(weight_ptr + c, mask=here, other=0.0) * rstd
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dz = slope[None, :] * tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if TRAINING:
        mean = tl.load(mean_ptr + c, mask=here, other=0.0)
        count = tl.load(count_ptr) if COUNTED else rows
        constant = slope / count * tl.load(sum_g_ptr + c, mask=here, other=0.0)
        linear = slope * rstd / count * tl.load(sum_gx_ptr + c, mask=here, other=0.0)
        dz = dz - constant[None, :] - (_rectify(z, RELU) - mean[None, :]) * linear[None, :]
    if RELU:
        dz = tl.where(z <= 0, 0.0, dz)
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    if scale_ptr is not None:  # noqa: SIM102, known when it is compiled; the other is not
        if tl.program_id(0) + tl.program_id(1) == 0:
            k = tl.arange(0, ALL_C)
            gamma = tl.load(weight_ptr + k, mask=k < channels, other=0.0).to(tl.float32)
            factor = tl.load(rstd_ptr + k, mask=k < channels, other=0.0)
            sum_gx = tl.load(own_sum_gx_ptr + k, mask=k < channels, other=0.0)
            scale = tl.load(scale_ptr).to(tl.float32)
            if TRAINING:
                terms = gamma * factor * factor * sum_gx * (eps / (scale * scale * scale))
            else:
                shift = tl.load(mean_ptr + k, mask=k < channels, other=0.0) * factor
                sum_g = tl.load(own_sum_g_ptr + k, mask=k < channels, other=0.0)
                terms = gamma * (sum_gx + shift * sum_g) / scale
            tl.store(dscale_ptr, tl.sum(terms, 0))
