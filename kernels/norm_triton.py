"""The Triton kernels of ``kernels.norm`` and their launchers.

Every map is seen as rows of channels, (positions, C), which is how (N, C) and channels_last lie in
memory; the launchers take maps that lie so and return maps of their shape.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels._triton import arrivals, is_last, jit, tl
from kernels.estimators import get_estimator

TILE = 2048  # the elements of a tile of an elementwise pass: with more, the backward pass spills
SPAN_TILE = 4096  # the elements of a tile of a reduction, whose programs have eight warps
FINISH = 128  # the channels of a program that finishes statistics
PROGRAMS = 264  # the most programs of a reduction, two for each multiprocessor of an H100


class Grid(NamedTuple):
    """How rows of channels are cut into tiles of ``block_m`` rows by ``block_c`` channels.

    An elementwise pass has a program for each of ``tiles``. A reduction has one for each of
    ``programs`` parts of ``span`` rows, of which the last may have fewer, and each of ``columns``.
    """

    rows: int
    channels: int
    block_m: int
    block_c: int
    tiles: tuple[int, int]
    span: int
    programs: int

    @property
    def columns(self) -> int:
        return self.tiles[1]

    @property
    def blocks(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_C": self.block_c}


@cache
def cut(rows: int, channels: int, block_m: int, block_c: int, programs: int) -> Grid:
    """The Grid of such blocks, with about ``programs`` programs in all for a reduction."""
    columns = -(-channels // block_c)
    tiles = -(-rows // block_m)
    span = block_m * -(-tiles // max(1, programs // columns))
    return Grid(rows, channels, block_m, block_c, (tiles, columns), span, -(-rows // span))


def cut_map(z: Tensor, tile: int) -> Grid:
    """The Grid of a map, (N, C) or (N, C, H, W), in tiles of ``tile`` elements."""
    channels = z.shape[1]
    block_c = min(1 << (channels - 1).bit_length(), 128)
    return cut(z.numel() // channels, channels, tile // block_c, block_c, PROGRAMS)


def partials(grid: Grid, like: Tensor) -> Tensor:
    """Room for two numbers of every channel from every program, (2, programs, C)."""
    shape = 2, grid.programs, grid.channels
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
    mean, rstd = torch.empty_like(running_mean), torch.empty_like(running_mean)
    running = running_mean, running_var, num_batches_tracked
    _launch_statistics(z, relu, None, scale, *running, mean, rstd, momentum, eps)
    return mean, rstd


def launch_sums(z: Tensor, relu: bool) -> Tensor:
    """``reference.pack_sums`` of ``reference.deviations`` in Triton."""
    sums = z.new_empty(2 * z.shape[1] + 1, dtype=torch.float64)
    if not z.numel():
        return sums.zero_()
    _launch_statistics(z, relu, sums)
    return sums


def launch_deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """``reference.deviations`` in Triton."""
    mean, squares = z.new_zeros(2, z.shape[1], dtype=torch.float32)
    if z.numel():
        _launch_statistics(z, relu, mean=mean, rstd=squares)
    return mean, squares


def _launch_statistics(
    z: Tensor,
    relu: bool,
    sums: Tensor | None = None,
    scale: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    momentum: float = 0.0,
    eps: float = 0.0,
) -> None:
    """Fill whichever results are given: see ``_statistics_kernel``."""
    grid = cut_map(z, SPAN_TILE)
    _statistics_kernel[(grid.programs, grid.columns)](
        *(z, partials(grid, z), arrivals(z), sums, scale),
        *(running_mean, running_var, num_batches_tracked, mean, rstd, momentum, eps),
        *(grid.rows, grid.channels, grid.span),
        RELU=relu,
        num_warps=8,
        **grid.blocks,
    )


def launch_finish(
    sums: Tensor,
    scale: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``reference.finish_statistics`` of ``reference.unpack_sums`` in Triton."""
    mean, rstd = torch.empty_like(running_mean), torch.empty_like(running_mean)
    _finish_kernel[(-(-len(mean) // FINISH),)](
        *(sums, scale, running_mean, running_var, num_batches_tracked, mean, rstd),
        *(len(mean), momentum, eps),
        BLOCK_C=FINISH,
    )
    return mean, rstd


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
    if z.numel():
        grid = cut_map(z, TILE)
        _forward_kernel[grid.tiles](
            *(z, weight, bias, mean, rstd, residual, y, yb if sign else None),
            *(grid.rows, grid.channels),
            RELU=relu,
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
    packed: Tensor | None = None,
    positions: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``reference.norm_binarize_reduce`` in Triton.

    ``packed``, (2 C + 1,) fp32, gets the same sums and the number of positions, which is that of z
    unless it is given.
    """
    g = dy if dyb is None else torch.empty_like(z)
    assert g is not None
    sums = mean.new_empty(2, len(mean))
    if not z.numel():
        if packed is not None:
            packed.zero_()
        return g, sums.zero_()
    grid = cut_map(z, SPAN_TILE)
    _reduce_kernel[(grid.programs, grid.columns)](
        *(dy, dyb, y, z, mean, rstd, params.float(), g),
        *(partials(grid, z), arrivals(z), sums, packed),
        *(grid.rows if positions is None else positions, grid.rows, grid.channels, grid.span),
        FACTOR=None if dyb is None else get_estimator(estimator).triton_factor,
        RELU=relu,
        num_warps=8,
        **grid.blocks,
    )
    return g, sums


def launch_apply(
    g: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    counted: bool,
    training: bool,
    relu: bool,
    scale: Tensor | None,
    own_sums: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``reference.norm_binarize_apply`` and ``reference.scale_gradient`` in Triton.

    ``sums`` holds 2 C numbers and, if ``counted``, after them the number of positions that they
    were taken over. The gradient of the scale comes from ``own_sums``, (2, C), those of this
    process; without a scale it is empty, (0,).
    """
    dz = torch.empty_like(z)
    dscale = weight.new_empty(0) if scale is None else torch.empty_like(scale)
    if not z.numel():
        return dz, dscale.zero_()
    grid = cut_map(z, TILE)
    _backward_kernel[grid.tiles](
        *(g, z, weight, mean, rstd, sums, dz),
        *(scale, own_sums, dscale, grid.rows, grid.channels, eps),
        COUNTED=counted,
        TRAINING=training,
        RELU=relu,
        ALL_C=1 << (grid.channels - 1).bit_length(),
        **grid.blocks,
    )
    return dz, dscale


@jit
def rectify(z, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    z = z.to(tl.float32)
    # One instruction, and a NaN stays a NaN.
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL) if RELU else z


@jit
def sign_of(y):  # type: ignore[no-untyped-def]
    """The sign of y as it is stored, because that is what the backward pass reads."""
    stored = y.to(tl.float32)
    return tl.where(stored >= 0, 1.0, tl.where(stored < 0, -1.0, stored)).to(y.dtype)


@jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    means_ptr,
    arrivals_ptr,
    sums_ptr,
    scale_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    mean_ptr,
    rstd_ptr,
    momentum,
    eps,
    rows,
    channels,
    span,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program writes the mean and squared deviations of its ``span`` rows, (programs,
    channels), and the last one of its channels to come there puts them together.

    The result is packed sums in ``sums_ptr``, if there is one; mean, rstd and running statistics,
    if there are running ones; else mean and squared deviations.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    squares_ptr = means_ptr + programs * channels
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    # The deviations are taken from the mean of the first tile, so that their squares do not cancel
    # however large the mean is.
    inside = (line < count)[:, None] & here[None, :]
    at = (begin + line).to(tl.int64)[:, None] * channels + c[None, :]
    u = rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
    shift = tl.sum(u, 0) / tl.minimum(count, BLOCK_M)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    # Unrolled, the loads of four tiles are on their way at once.
    for first in tl.range(0, span, BLOCK_M, loop_unroll_factor=4):
        inside = (first + line < count)[:, None] & here[None, :]
        at = (begin + first + line).to(tl.int64)[:, None] * channels + c[None, :]
        u = rectify(tl.load(z_ptr + at, mask=inside, other=0.0), RELU)
        deviation = tl.where(inside, u - shift[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    offset = tl.sum(total, 0) / count
    to = program.to(tl.int64) * channels + c
    tl.store(means_ptr + to, shift + offset, mask=here)
    tl.store(squares_ptr + to, tl.sum(squares, 0) - offset * offset * count, mask=here)
    if is_last(arrivals_ptr + tl.program_id(1), programs):
        mean, deviations = combine(
            means_ptr, squares_ptr, c, here, programs, rows, channels, span, BLOCK_M, BLOCK_C
        )
        if sums_ptr is not None:
            n, wide = rows.to(tl.float64), mean.to(tl.float64)
            tl.store(sums_ptr + c, n * wide, mask=here)
            wide = deviations.to(tl.float64) + n * wide * wide
            tl.store(sums_ptr + channels + c, wide, mask=here)
            if tl.program_id(1) == 0:
                tl.store(sums_ptr + 2 * channels, n)
        elif running_mean_ptr is None:
            tl.store(mean_ptr + c, mean, mask=here)
            tl.store(rstd_ptr + c, deviations, mask=here)
        else:
            _finish(
                *(c, here, mean, deviations / rows, rows.to(tl.float32), scale_ptr),
                *(running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr, momentum, eps),
            )
            if tl.program_id(1) == 0:
                tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@jit
def combine(  # type: ignore[no-untyped-def]
    means_ptr,
    squares_ptr,
    c,
    here,
    programs,
    rows,
    channels,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean and squared deviations of all programs together, (BLOCK_C,), by the sums of Chan,
    Golub and LeVeque."""
    line = tl.arange(0, BLOCK_P)
    # Past the L1 cache, which does not see what other multiprocessors wrote.
    first = tl.load(means_ptr + c, mask=here, other=0.0, cache_modifier=".cg")
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        p = start + line
        inside = (p < programs)[:, None] & here[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        count = tl.minimum(rows - p * span, span).to(tl.float32)[:, None]
        means = tl.load(means_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        between = tl.where(inside, means - first[None, :], 0.0)
        total += between * count
        within = tl.load(squares_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        squares += between * between * count + within
    offset = tl.sum(total, 0) / rows
    mean = first + offset
    deviations = tl.maximum(tl.sum(squares, 0) - offset * offset * rows, 0.0)
    return mean, tl.where(mean == mean, deviations, mean)  # a NaN stays a NaN


@jit
def _finish(  # type: ignore[no-untyped-def]
    c,
    here,
    mean,
    var,
    n,
    scale_ptr,
    running_mean_ptr,
    running_var_ptr,
    mean_ptr,
    rstd_ptr,
    momentum,
    eps,
):
    """Write mean and rstd of ``n`` positions, and move the running statistics."""
    scale = 1.0
    if scale_ptr is not None:
        scale = tl.load(scale_ptr).to(tl.float32)
    tl.store(mean_ptr + c, mean, mask=here)
    tl.store(rstd_ptr + c, 1.0 / tl.sqrt(var + eps / (scale * scale)), mask=here)
    old = tl.load(running_mean_ptr + c, mask=here)
    tl.store(running_mean_ptr + c, old + momentum * (scale * mean - old), mask=here)
    old = tl.load(running_var_ptr + c, mask=here)
    unbiased = scale * scale * var * (n / (n - 1.0))
    tl.store(running_var_ptr + c, old + momentum * (unbiased - old), mask=here)


@jit
def _finish_kernel(  # type: ignore[no-untyped-def]
    sums_ptr,
    scale_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    mean_ptr,
    rstd_ptr,
    channels,
    momentum,
    eps,
    BLOCK_C: tl.constexpr,
):
    """From the packed sums of all processes to mean, rstd and running statistics."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    n = tl.load(sums_ptr + 2 * channels)
    mean = tl.load(sums_ptr + c, mask=here, other=0.0) / n
    var = tl.load(sums_ptr + channels + c, mask=here, other=0.0) / n - mean * mean
    var = tl.where(var < 0, 0.0, var)  # a NaN stays a NaN
    _finish(
        *(c, here, mean.to(tl.float32), var.to(tl.float32), n.to(tl.float32), scale_ptr),
        *(running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr, momentum, eps),
    )
    if tl.program_id(0) == 0:
        tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@jit
def load_affine(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, c, here):  # type: ignore[no-untyped-def]
    """mean, slope and bias, (BLOCK_C,), of the equation of ``normalize``."""
    mean = tl.load(mean_ptr + c, mask=here, other=0.0)
    rstd = tl.load(rstd_ptr + c, mask=here, other=0.0)
    slope = rstd * tl.load(weight_ptr + c, mask=here, other=0.0)
    return mean, slope, tl.load(bias_ptr + c, mask=here, other=0.0)


@jit
def normalize(z, affine, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """gamma (u - mean) rstd + beta in fp32, for z (BLOCK_M, BLOCK_C)."""
    mean, slope, bias = affine
    return (rectify(z, RELU) - mean[None, :]) * slope[None, :] + bias[None, :]


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
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    affine = load_affine(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, c, here)
    y = normalize(tl.load(z_ptr + at, mask=inside, other=0.0), affine, RELU)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)
    if yb_ptr is not None:
        tl.store(yb_ptr + at, sign_of(y), mask=inside)


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
    partial_g_ptr,
    arrivals_ptr,
    sums_ptr,
    packed_ptr,
    positions,
    rows,
    channels,
    span,
    FACTOR: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """g = dy + dyb h(y), and the sums of g and of g xhat.

    Each program writes those of its ``span`` rows, (programs, channels), and the last one of its
    channels to come there adds them up.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    partial_gx_ptr = partial_g_ptr + programs * channels
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
        # All loads come first, so that they are on their way together.
        z = tl.load(z_ptr + at, mask=inside, other=0.0)
        g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        if FACTOR is not None:
            y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
            dyb = tl.load(dyb_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if dy_ptr is not None:
            g += tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if FACTOR is not None:
            g += tl.where(y == y, dyb * FACTOR(y, params_ptr), y)
            stored = g.to(g_ptr.dtype.element_ty)
            tl.store(g_ptr + at, stored, mask=inside)
            g = stored.to(tl.float32)  # what the next pass reads
        u = rectify(z, RELU)
        sum_g += g
        sum_gx += g * (u - mean[None, :])
    to = program.to(tl.int64) * channels + c
    tl.store(partial_g_ptr + to, tl.sum(sum_g, 0), mask=here)
    rstd = tl.load(rstd_ptr + c, mask=here, other=0.0)
    tl.store(partial_gx_ptr + to, tl.sum(sum_gx, 0) * rstd, mask=here)
    if is_last(arrivals_ptr + tl.program_id(1), programs):
        sum_g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        sum_gx = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for start in range(0, programs, BLOCK_M):
            p = start + line
            inside = (p < programs)[:, None] & here[None, :]
            at = p.to(tl.int64)[:, None] * channels + c[None, :]
            sum_g += tl.load(partial_g_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
            sum_gx += tl.load(partial_gx_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        all_g, all_gx = tl.sum(sum_g, 0), tl.sum(sum_gx, 0)
        tl.store(sums_ptr + c, all_g, mask=here)
        tl.store(sums_ptr + channels + c, all_gx, mask=here)
        if packed_ptr is not None:
            tl.store(packed_ptr + c, all_g, mask=here)
            tl.store(packed_ptr + channels + c, all_gx, mask=here)
            if tl.program_id(1) == 0:
                tl.store(packed_ptr + 2 * channels, positions.to(tl.float32))


@jit
def load_coefficients(  # type: ignore[no-untyped-def]
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    c,
    here,
    rows,
    channels,
    COUNTED: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """slope, constant, linear and mean, (BLOCK_C,), of the equation of ``differentiate``."""
    rstd = tl.load(rstd_ptr + c, mask=here, other=0.0)
    slope = tl.load(weight_ptr + c, mask=here, other=0.0) * rstd
    constant, linear, mean = slope, slope, slope  # what fixed statistics do not need
    if TRAINING:
        mean = tl.load(mean_ptr + c, mask=here, other=0.0)
        count = tl.load(sums_ptr + 2 * channels) if COUNTED else rows
        constant = slope / count * tl.load(sums_ptr + c, mask=here, other=0.0)
        linear = slope * rstd / count * tl.load(sums_ptr + channels + c, mask=here, other=0.0)
    return slope, constant, linear, mean


@jit
def differentiate(g, z, coefficients, TRAINING: tl.constexpr, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """dz = gamma rstd (g - mean(g) - xhat mean(g xhat)), with ``RELU`` only where z > 0.

    g and z are (BLOCK_M, BLOCK_C) in fp32.
    """
    slope, constant, linear, mean = coefficients
    dz = slope[None, :] * g
    if TRAINING:
        dz = dz - constant[None, :] - (rectify(z, RELU) - mean[None, :]) * linear[None, :]
    return tl.where(z <= 0, 0.0, dz) if RELU else dz


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    z_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    dz_ptr,
    scale_ptr,
    own_sums_ptr,
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
    """dz by ``differentiate``. One program also computes the gradient of the scale, which saves a
    launch."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    coefficients = load_coefficients(
        *(weight_ptr, mean_ptr, rstd_ptr, sums_ptr, c, here, rows, channels, COUNTED, TRAINING)
    )
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dz = differentiate(g, z, coefficients, TRAINING, RELU)
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    if scale_ptr is not None:  # noqa: SIM102, since only this is known to the compiler
        if tl.program_id(0) + tl.program_id(1) == 0:
            k = tl.arange(0, ALL_C)
            gamma = tl.load(weight_ptr + k, mask=k < channels, other=0.0).to(tl.float32)
            factor = tl.load(rstd_ptr + k, mask=k < channels, other=0.0)
            sum_gx = tl.load(own_sums_ptr + channels + k, mask=k < channels, other=0.0)
            scale = tl.load(scale_ptr).to(tl.float32)
            if TRAINING:
                terms = gamma * factor * factor * sum_gx * (eps / (scale * scale * scale))
            else:
                shift = tl.load(mean_ptr + k, mask=k < channels, other=0.0) * factor
                sum_g = tl.load(own_sums_ptr + k, mask=k < channels, other=0.0)
                terms = gamma * (sum_gx + shift * sum_g) / scale
            tl.store(dscale_ptr, tl.sum(terms, 0))
