"""Binary 3x3 convolution with the batch statistics of its output, as an implicit GEMM.

With xb and w of ±1, zeros around xb, and stride s,

    z[n, o, y, x] = sum over i, dy, dx of  xb[n, i, s y + dy - 1, s x + dx - 1] w[o, i, dy, dx]

is a product of two matrices. The first has a row for every output position, the second a column for
every output channel, and each sum has 9 I products: the taps one after the other, and the channels
of a tap side by side, as channels_last has them. The first matrix is never written. A program
gathers its part from xb, mostly out of the caches, because its neighbours read the same pixels.
While it stores z, it computes the mean and the squared deviations of relu(z), which otherwise takes
another pass over z (``kernels.norm``).

This is a candidate: only the benchmark calls it, until it is measured to be faster than cuDNN.
Training with it needs three things more. ``norm_binarize`` has to store yb as int8 or fp8. The
convolution has to have an autograd formula, whose gradients are convolutions of signs and
half-precision gradients, for which yb has to be widened or kept twice. And the statistics have to
be summed over the processes.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels._triton import jit, tl, triton, uses_triton
from kernels.norm import as_rows
from kernels.norm_triton import PROGRAMS, Grid, combine, cut, partials, rectify

OPERANDS = (torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16)
OUTPUTS = (torch.float16, torch.bfloat16, torch.float32)


class Tile(NamedTuple):
    """What a program multiplies at once: (m, k) by (k, o).

    It has ``warps`` warps, and its loads run ``stages`` products ahead.
    """

    m: int
    o: int
    k: int
    warps: int
    stages: int


def tiles(channels: int, itemsize: int) -> list[Tile]:
    """The tiles worth trying for ``channels`` output channels and operands of ``itemsize`` bytes.

    k is 64 or 128 bytes, however many channels there are, so it spans several taps where they are
    few: of 16 channels in int8 it holds four taps, and three products hold all nine. One tap at a
    time would leave half of each product empty, because a product of 8-bit operands takes 32 of
    them, and all taps at once, padded to 256, would leave 44 % of it empty. A tile has at most 8192
    sums, because 16384 spill registers.
    """
    o = min(max(triton.next_power_of_2(channels), 16), 128)
    return [
        Tile(m, o, k // itemsize, 8 if m * o > 2048 else 4, 3)
        for k, m in itertools.product((64, 128), (128, 64))
        if m * o <= 8192
    ]


def convolve(
    xb: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    dtype: torch.dtype = torch.float16,
    relu: bool = True,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """z of this file's equation, and the mean and squared deviations of relu(z) as stored.

    Args:
        xb: (N, I, H, W) of int8, fp8 (e4m3), fp16 or bf16. It is copied unless it is channels_last,
            and read fast where the channels of a pixel are a multiple of 16 bytes.
        weight: (O, I, 3, 3) of xb's dtype. It is copied unless it is channels_last.
        stride: 1 or 2. The padding is 1.
        dtype: the dtype of z: fp16, bf16 or fp32.
        relu: whether the statistics are those of relu(z) or of z.
        tile: one of ``tiles``, which all give the same z; None for the first.

    Returns:
        z, (N, O, ceil(H / stride), ceil(W / stride)) of ``dtype``, channels_last; the mean and the
        sum of squared deviations over all positions of the batch, (O,) fp32, as
        ``reference.deviations`` gives them.

    int8 is accumulated in int32, the others in fp32. Sums of ±1 are then exact before they are
    rounded to ``dtype``. This holds for fp8 too: on sm_90, tensor cores keep about 14 bits of a sum
    of fp8, and 512 channels need 13.

    Raises:
        ValueError: shapes, dtypes, devices or a stride that do not fit; the message names the
            argument.

    fp8 needs sm_89 or newer. Has no gradient. CUDA tensors run in Triton, CPU tensors in
    ``kernels.reference``. Source: implicit GEMM is how cuDNN convolves (Chetlur et al., 2014,
    arXiv:1410.0759); the partial sums are those of ``kernels.norm_triton``.
    """
    _check(xb, weight, stride, dtype)
    if not uses_triton(xb):
        return reference.convolve(xb, weight, stride, dtype, relu)
    tile = tile or tiles(len(weight), xb.itemsize)[0]
    return launch_convolve(xb, weight, stride, dtype, relu, tile)


def _check(xb: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> None:
    if xb.dim() != 4 or xb.dtype not in OPERANDS or not xb.shape[1]:
        raise ValueError(
            f"xb is {xb.dtype} of shape {tuple(xb.shape)}; it must be (N, I, H, W) of "
            f"{_names(OPERANDS)}"
        )
    wanted = (weight.shape[0] if weight.dim() else 0, xb.shape[1], 3, 3)
    if weight.shape != wanted or weight.dtype != xb.dtype or weight.device != xb.device:
        raise ValueError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)} on {weight.device}; it must "
            f"be (O, {xb.shape[1]}, 3, 3) of {xb.dtype} on {xb.device}"
        )
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; it must be 1 or 2")
    if dtype not in OUTPUTS:
        raise ValueError(f"dtype is {dtype}; it must be one of {_names(OUTPUTS)}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def launch_convolve(
    xb: Tensor, weight: Tensor, stride: int, dtype: torch.dtype, relu: bool, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.convolve`` in Triton."""
    (n, in_channels, height, width), channels = xb.shape, len(weight)
    size = triton.cdiv(height, stride), triton.cdiv(width, stride)
    z = torch.empty((n * size[0] * size[1], channels), dtype=dtype, device=xb.device)
    shaped = z.view(n, *size, channels).permute(0, 3, 1, 2)
    if not z.numel():
        nothing = torch.zeros(channels, device=xb.device)
        return shaped, nothing, nothing
    grid = cut(len(z), channels, tile.m, tile.o, PROGRAMS)
    sums = partials(grid, z)
    _convolution_kernel[(grid.columns, grid.programs)](
        *(as_rows(xb), weight.permute(0, 2, 3, 1).contiguous(), z, *sums),
        *(grid.rows, grid.span, height, width, *size),
        CHANNELS_IN=in_channels,
        CHANNELS=channels,
        STRIDE=stride,
        RELU=relu,
        BLOCK_M=tile.m,
        BLOCK_O=tile.o,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return shaped, *_launch_combine(grid, sums)


def _launch_combine(grid: Grid, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and squared deviations, (C,), from those of the programs, (2, programs, C)."""
    mean, squares = torch.empty_like(sums[0, 0]), torch.empty_like(sums[0, 0])
    block_c = 4
    _combine_kernel[(triton.cdiv(grid.channels, block_c),)](
        *(*sums, mean, squares, grid.programs, grid.rows, grid.channels, grid.span),
        BLOCK_P=512,
        BLOCK_C=block_c,
    )
    return mean, squares


@jit
def _convolution_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    z_ptr,
    mean_ptr,
    squares_ptr,
    rows,
    span,
    height,
    width,
    out_height,
    out_width,
    CHANNELS_IN: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """z, (rows, channels), and each program's mean and deviations, (programs, channels)."""
    program = tl.program_id(1)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    here = o < CHANNELS
    line = tl.arange(0, BLOCK_M)
    begin = program * span
    count = tl.minimum(rows - begin, span)
    mean = tl.zeros((BLOCK_O,), tl.float32)
    squares = tl.zeros((BLOCK_O,), tl.float32)
    for first in range(0, count, BLOCK_M):
        row = begin + first + line
        valid = first + line < count
        image = row // (out_height * out_width)
        top = row // out_width % out_height * STRIDE - 1
        left = row % out_width * STRIDE - 1
        corner = ((image * height + top).to(tl.int64) * width + left) * CHANNELS_IN
        top = tl.where(valid, top, height)  # below the map there is nothing to load
        sums = _products(
            *(x_ptr + corner, w_ptr, top, left, o, here, height, width),
            *(CHANNELS_IN, BLOCK_M, BLOCK_O, BLOCK_K),
        )
        stored = sums.to(tl.float32).to(z_ptr.dtype.element_ty)
        inside = valid[:, None] & here[None, :]
        at = row.to(tl.int64)[:, None] * CHANNELS + o[None, :]
        tl.store(z_ptr + at, stored, mask=inside)
        u = rectify(stored, RELU)
        # The sums of Chan, Golub and LeVeque over the tiles need only one row of registers while
        # the next tile is multiplied.
        tile = tl.minimum(count - first, BLOCK_M)
        tile_mean = tl.sum(tl.where(inside, u, 0.0), 0) / tile
        deviation = tl.where(inside, u - tile_mean[None, :], 0.0)
        between = tile_mean - mean
        share = tile / (first + tile).to(tl.float32)
        squares += tl.sum(deviation * deviation, 0) + between * between * first * share
        mean += between * share
    to = program.to(tl.int64) * CHANNELS + o
    tl.store(mean_ptr + to, mean, mask=here)
    tl.store(squares_ptr + to, squares, mask=here)


@jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    means_ptr,
    squares_ptr,
    mean_ptr,
    deviations_ptr,
    programs,
    rows,
    channels,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    mean, deviations = combine(
        means_ptr, squares_ptr, c, here, programs, rows, channels, span, BLOCK_P, BLOCK_C
    )
    tl.store(mean_ptr + c, mean, mask=here)
    tl.store(deviations_ptr + c, deviations, mask=here)


@jit
def _products(  # type: ignore[no-untyped-def]
    corner_ptr,
    w_ptr,
    top,
    left,
    o,
    here,
    height,
    width,
    CHANNELS_IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums (BLOCK_M, BLOCK_O) of rows whose first tap is the pixel (top, left)."""
    SUMS: tl.constexpr = 9 * CHANNELS_IN
    sums = tl.zeros(
        (BLOCK_M, BLOCK_O), tl.int32 if w_ptr.dtype.element_ty == tl.int8 else tl.float32
    )
    for start in range(0, SUMS, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tap = k // CHANNELS_IN
        dy, dx = tap // 3, tap % 3
        y, x = top[:, None] + dy[None, :], left[:, None] + dx[None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (k < SUMS)[None, :]
        pixels = corner_ptr[:, None] + ((dy * width + dx) * CHANNELS_IN + k % CHANNELS_IN)[None, :]
        taps = w_ptr + k[:, None] + o[None, :] * SUMS
        a = tl.load(pixels, mask=inside, other=0.0)
        b = tl.load(taps, mask=(k < SUMS)[:, None] & here[None, :], other=0.0)
        sums = tl.dot(a, b, sums, out_dtype=sums.dtype)
    return sums
