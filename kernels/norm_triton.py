"""The Triton kernels of ``kernels.norm`` and their launchers.

Every map is seen as contiguous rows of channels, (positions, C).
"""

import torch
from torch import Tensor

from kernels._triton import jit, tl, triton
from kernels.estimators import get_estimator

TILE = 2048  # the elements of a tile: with more, the backward pass spills registers
PROGRAMS = 512  # the most programs of a reduction; each makes one row of partial sums
COMBINE = {"BLOCK_P": 512, "BLOCK_C": 4}  # a tile of partial sums holds those of all programs


class _Grid:
    """How rows of channels are cut into tiles, and reductions into programs.

    A tile is ``block_m`` rows by ``block_c`` channels, by default ``TILE`` elements.
    """

    def __init__(self, rows: Tensor, block_m: int = 0, block_c: int = 0) -> None:
        self.rows, self.channels = rows.shape
        self.block_c = block_c or min(triton.next_power_of_2(self.channels), 128)
        self.block_m = block_m or TILE // self.block_c
        self.columns = triton.cdiv(self.channels, self.block_c)
        tiles = triton.cdiv(self.rows, self.block_m)
        self.tiles = (tiles, self.columns)
        # Each program of a reduction takes ``span`` rows, the last one perhaps fewer.
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
    """The mean and squared deviations, (C,), from those of the programs, (2, programs, C)."""
    mean, squares = torch.empty_like(partials[0, 0]), torch.empty_like(partials[0, 0])
    _combine_statistics_kernel[grid.channel_blocks](
        *partials,
        *(mean, mean, mean, mean, mean, squares),  # the first four are read only with FINISH
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
    """``reference.norm_binarize_apply`` and ``reference.scale_gradient`` in Triton.

    The second takes ``own_sums``, the sums of this process. Without a scale it is empty, (0,).
    """
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
    """Each program writes the mean and squared deviations of its ``span`` rows.

    Both results are (programs, channels).
    """
    program = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    # The deviations are taken from the mean of the first tile, so that their squares do not cancel
    # however large the mean is.
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
    """The statistics of all programs together, by the sums of Chan, Golub and LeVeque.

    With ``FINISH`` they become mean, rstd and running statistics, else mean and deviations.
    """
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
    if SIGN:  # the sign of y as it is stored, because that is what the backward pass reads
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
    """g = dy + dyb h(y), and each program's sums of g and of g xhat, (programs, channels)."""
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
    """dz = gamma rstd (g - mean(g) - xhat mean(g xhat)), with ``RELU`` only where z > 0.

    One program also computes the gradient of the scale, which saves a launch.
    """
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
    if scale_ptr is not None:  # noqa: SIM102, since only this is known to the compiler
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
