"""The Triton kernels of ``kernels.pool`` and their launchers.

The launchers take maps that are channels_last and return such maps. A program has a tile of pooled
positions by channels. In the backward pass it makes the gradients of the 2 x 2 positions around the
middle of each window: together these squares cover every position once.
"""

import torch
from torch import Tensor

from kernels._triton import jit, tl
from kernels.norm_triton import (
    cut_map,
    differentiate,
    load_affine,
    load_coefficients,
    normalize,
    sign_of,
)

TILE = 1024  # the elements of a tile, each of which is made from nine elements or makes four


def empty_pooled(z: Tensor) -> Tensor:
    """An empty map for the maxima of windows of z, (N, C, H, W), channels_last."""
    n, c, h, w = z.shape
    return z.new_empty(n, (h + 1) // 2, (w + 1) // 2, c).permute(0, 3, 1, 2)


def launch_forward(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sign: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``reference.norm_binarize`` without the sign, ``reference.max_pool`` and ``reference.sign``
    in Triton: x, xb, index and top; without ``sign`` xb is empty, (0,)."""
    x = empty_pooled(z)
    xb = torch.empty_like(x) if sign else z.new_empty(0)
    index, top = torch.empty_like(x, dtype=torch.uint8), torch.empty_like(x)
    if z.numel():
        grid = cut_map(x, TILE)
        _forward_kernel[grid.tiles](
            *(z, weight, bias, mean, rstd, x, xb if sign else None, index, top),
            *(grid.rows, grid.channels, *z.shape[2:]),
            RELU=relu,
            **grid.blocks,
        )
    return x, xb, index, top


def launch_apply(
    g: Tensor,
    index: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    counted: bool,
    training: bool,
    relu: bool,
) -> Tensor:
    """``reference.norm_binarize_apply`` of ``reference.unpool`` in Triton.

    ``sums`` and ``counted`` are those of ``norm_triton.launch_apply``.
    """
    dz = torch.empty_like(z)
    if z.numel():
        grid = cut_map(g, TILE)
        _backward_kernel[grid.tiles](
            *(g, index, z, weight, mean, rstd, sums, dz),
            *(z.numel() // grid.channels, grid.rows, grid.channels, *z.shape[2:]),
            COUNTED=counted,
            TRAINING=training,
            RELU=relu,
            **grid.blocks,
        )
    return dz


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    x_ptr,
    xb_ptr,
    index_ptr,
    top_ptr,
    rows,
    channels,
    height,
    width,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The largest y of each window as it would be stored, its sign, place and z."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    image, i, j = _place(row, height, width)
    affine = load_affine(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, c, here)
    inside = (row < rows)[:, None] & here[None, :]
    x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    top = tl.zeros((BLOCK_M, BLOCK_C), z_ptr.dtype.element_ty)
    index = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for k in tl.static_range(9):
        # In the place of padding stands its neighbour, which leaves the maximum what it is.
        h = tl.minimum(tl.maximum(2 * i - 1 + k // 3, 0), height - 1)
        w = tl.minimum(tl.maximum(2 * j - 1 + k % 3, 0), width - 1)
        place = 3 * (h - 2 * i + 1) + w - 2 * j + 1
        at = _at(image, h, w, height, width, channels, c)
        z = tl.load(z_ptr + at, mask=inside, other=0.0)
        y = normalize(z, affine, RELU).to(x_ptr.dtype.element_ty).to(tl.float32)
        taken = inside if k == 0 else (y > x) | (y != y)  # a NaN wins
        x, top = tl.where(taken, y, x), tl.where(taken, z, top)
        index = tl.where(taken, place[:, None], index)
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    x = x.to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + at, x, mask=inside)
    tl.store(index_ptr + at, index.to(tl.uint8), mask=inside)
    tl.store(top_ptr + at, top, mask=inside)
    if xb_ptr is not None:
        tl.store(xb_ptr + at, sign_of(x), mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    index_ptr,
    z_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    dz_ptr,
    positions,
    rows,
    channels,
    height,
    width,
    COUNTED: tl.constexpr,
    TRAINING: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dz at (2i, 2j) to (2i + 1, 2j + 1) from the windows that may have chosen one of these:
    (i, j), and those to its right, below and both."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < channels
    image, i, j = _place(row, height, width)
    coefficients = load_coefficients(
        *(weight_ptr, mean_ptr, rstd_ptr, sums_ptr, c, here, positions, channels),
        *(COUNTED, TRAINING),
    )
    window = g_ptr, index_ptr, image, (height + 1) // 2, (width + 1) // 2, channels, c, row < rows
    g, index = _load_window(*window, i, j)
    g_right, index_right = _load_window(*window, i, j + 1)
    g_below, index_below = _load_window(*window, i + 1, j)
    g_across, index_across = _load_window(*window, i + 1, j + 1)
    for k in tl.static_range(4):  # the position (2i + k // 2, 2j + k % 2)
        chosen = tl.where(index == 4 + k // 2 * 3 + k % 2, g, 0.0)
        if k % 2 == 1:
            chosen += tl.where(index_right == 3 + k // 2 * 3, g_right, 0.0)
        if k // 2 == 1:
            chosen += tl.where(index_below == 1 + k % 2, g_below, 0.0)
        if k == 3:
            chosen += tl.where(index_across == 0, g_across, 0.0)
        h, w = 2 * i + k // 2, 2 * j + k % 2
        inside = ((row < rows) & (h < height) & (w < width))[:, None] & here[None, :]
        at = _at(image, h, w, height, width, channels, c)
        z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dz = differentiate(chosen, z, coefficients, TRAINING, RELU)
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=inside)


@jit
def _load_window(g_ptr, index_ptr, image, tall, wide, channels, c, within, i, j):  # type: ignore[no-untyped-def]
    """The gradient of the maximum of window (i, j) and its place in it: 9, if there is none."""
    inside = (within & (i < tall) & (j < wide))[:, None] & (c < channels)[None, :]
    at = _at(image, i, j, tall, wide, channels, c)
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return g, tl.load(index_ptr + at, mask=inside, other=9)


@jit
def _place(row, height, width):  # type: ignore[no-untyped-def]
    """Image, row and column of a pooled position."""
    tall, wide = (height + 1) // 2, (width + 1) // 2
    return row // (tall * wide), row // wide % tall, row % wide


@jit
def _at(image, h, w, height, width, channels, c):  # type: ignore[no-untyped-def]
    """Where the channels ``c`` of a position lie in a map, (BLOCK_M, BLOCK_C)."""
    return ((image * height + h) * width + w).to(tl.int64)[:, None] * channels + c[None, :]
