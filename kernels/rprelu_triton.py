"""The Triton kernels of ``kernels.rprelu`` and their launchers.

The launchers take maps that are channels_last and return such maps, as those of
``kernels.norm_triton`` do.
"""

import torch
from torch import Tensor

from kernels._triton import arrivals, is_last, jit, tl
from kernels.estimators import get_estimator
from kernels.norm_triton import TILE, cut_map, load_affine, normalize

SPAN_TILE = 2048  # the elements of a tile of the reduction, which keeps five sums
SUMS = 5


def launch_forward(
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
    """``reference.norm_prelu_binarize`` in Triton."""
    y = torch.empty_like(z)
    yb = z.new_empty(0) if offset is None else torch.empty_like(z)
    if z.numel():
        grid = cut_map(z, TILE)
        _forward_kernel[grid.tiles](
            *(z, weight, bias, mean, rstd, residual, slope, shift, offset, y, yb),
            *(grid.rows, grid.channels),
            **grid.blocks,
        )
    return y, yb


def launch_reduce(
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
    """``reference.norm_prelu_binarize_reduce`` in Triton."""
    g, sums = torch.empty_like(z), mean.new_empty(SUMS, len(mean))
    if not z.numel():
        return g, sums.zero_()
    grid = cut_map(z, SPAN_TILE)
    partials = sums.new_empty(SUMS, grid.programs, grid.channels)
    _reduce_kernel[(grid.programs, grid.columns)](
        *(dy, dyb, z, residual, weight, bias, mean, rstd, slope, shift, offset, params.float()),
        *(g, partials, arrivals(z), sums, grid.rows, grid.channels, grid.span),
        FACTOR=None if dyb is None else get_estimator(estimator).triton_factor,
        num_warps=8,
        **grid.blocks,
    )
    return g, sums


@jit
def _vector(ptr, c, here):  # type: ignore[no-untyped-def]
    """One number of each channel, (1, BLOCK_C)."""
    return tl.load(ptr + c, mask=here, other=0.0).to(tl.float32)[None, :]


@jit
def _stream(z, residual, affine, slope, shift):  # type: ignore[no-untyped-def]
    """v, and y before it is rounded, in fp32."""
    v = normalize(z, affine, False) + residual.to(tl.float32)
    return v, tl.where(v > 0, v, slope * v) + shift


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    slope_ptr,
    shift_ptr,
    offset_ptr,
    y_ptr,
    yb_ptr,
    rows,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    affine = load_affine(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, c, here)
    z = tl.load(z_ptr + at, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + at, mask=inside, other=0.0)
    slope, shift = _vector(slope_ptr, c, here), _vector(shift_ptr, c, here)
    _, y = _stream(z, residual, affine, slope, shift)
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)
    if offset_ptr is not None:
        x = y.to(tl.float32) + _vector(offset_ptr, c, here)
        yb = tl.where(x >= 0, 1.0, tl.where(x < 0, -1.0, x))
        tl.store(yb_ptr + at, yb.to(yb_ptr.dtype.element_ty), mask=inside)


@jit
def _reduce_kernel(  # type: ignore[no-untyped-def]
    dy_ptr,
    dyb_ptr,
    z_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    slope_ptr,
    shift_ptr,
    offset_ptr,
    params_ptr,
    g_ptr,
    partials_ptr,
    arrivals_ptr,
    sums_ptr,
    rows,
    channels,
    span,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of v, and five sums, which are put together as in
    ``kernels.norm_triton._reduce_kernel``."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    affine = load_affine(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, c, here)
    slope, shift = _vector(slope_ptr, c, here), _vector(shift_ptr, c, here)
    mean, rstd = _vector(mean_ptr, c, here), _vector(rstd_ptr, c, here)
    sum_g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_shift = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_slope = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_offset = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, span, BLOCK_M):
        inside = (first + line < count)[:, None] & here[None, :]
        at = (begin + first + line).to(tl.int64)[:, None] * channels + c[None, :]
        # All loads come first, so that they are on their way together.
        z = tl.load(z_ptr + at, mask=inside, other=0.0)
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0)
        g = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        if FACTOR is not None:
            dyb = tl.load(dyb_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if dy_ptr is not None:
            g += tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        v, y = _stream(z, residual, affine, slope, shift)
        if FACTOR is not None:
            stored_y = y.to(g_ptr.dtype.element_ty).to(tl.float32)  # what the sign was taken of
            x = stored_y + _vector(offset_ptr, c, here)
            by_sign = tl.where(x == x, dyb * FACTOR(x, params_ptr), x)
            sum_offset += by_sign
            g += by_sign
        sum_shift += g
        sum_slope += g * tl.where(v > 0, 0.0, v)
        stored = tl.where(v > 0, g, slope * g).to(g_ptr.dtype.element_ty)
        tl.store(g_ptr + at, stored, mask=inside)
        g = stored.to(tl.float32)  # what the next pass reads
        sum_g += g
        sum_gx += g * (z.to(tl.float32) - mean)
    to = partials_ptr + program.to(tl.int64) * channels + c
    step = programs * channels  # from the partial sums of one kind to those of the next
    tl.store(to, tl.sum(sum_g, 0), mask=here)
    tl.store(to + step, tl.sum(sum_gx * rstd, 0), mask=here)
    tl.store(to + 2 * step, tl.sum(sum_shift, 0), mask=here)
    tl.store(to + 3 * step, tl.sum(sum_slope, 0), mask=here)
    tl.store(to + 4 * step, tl.sum(sum_offset, 0), mask=here)
    if is_last(arrivals_ptr + tl.program_id(1), programs):
        for kind in range(5):
            total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
            for start in range(0, programs, BLOCK_M):
                p = start + line
                inside = (p < programs)[:, None] & here[None, :]
                part = partials_ptr + kind * step + p.to(tl.int64)[:, None] * channels + c[None, :]
                total += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(sums_ptr + kind * channels + c, tl.sum(total, 0), mask=here)
