"""Signs as bits, which take a sixteenth of the memory of fp16 where they are kept or sent."""

import math
from collections.abc import Sequence

import torch

from kernels import reference
from kernels._triton import jit, tl, triton, uses_triton

BLOCK = 4096  # the signs that one program takes, a multiple of 8


def pack(x: torch.Tensor) -> torch.Tensor:
    """The signs of x, 8 to a byte: bit k mod 8 of byte floor(k / 8) is 1 where x[k] >= 0, else 0.

    Args:
        x: n elements, floating point, of any shape and memory format. k counts them in the order
            of the storage of ``torch.empty_like(x)``, which is x's own where x is dense.

    Returns:
        (ceil(n / 8),) uint8. 0 and -0 give 1, as sign(0) is +1; the bits after the last sign are 0.
        A bit cannot hold a NaN: it is 0 (NaN >= 0 is false) and comes back as -1, so whoever has to
        notice a NaN must look at x.

    Raises:
        ValueError: x is not floating point.

    Has no gradient. CUDA tensors run in Triton, CPU tensors and float64 in ``kernels.reference``.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, not {x.dtype}")
    return _pack(x)


def unpack(
    packed: torch.Tensor,
    shape: Sequence[int],
    stride: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The signs in ``packed``: y[k] = 2 b - 1 with b = bit k mod 8 of byte floor(k / 8).

    Args:
        packed: (ceil(n / 8),) uint8, contiguous, as ``pack`` returns it.
        shape: the shape of the tensor that was packed, of n elements.
        stride: the stride of that tensor, or of its ``empty_like`` where it was not dense; k counts
            in the order of this storage. The default is the stride of a contiguous tensor.
        dtype: floating point.

    Returns:
        A tensor of -1 and +1 of this shape, stride and dtype.

    Raises:
        ValueError: packed is not uint8, not contiguous or not ceil(n / 8) bytes, stride has gaps or
            overlaps, or dtype is not floating point.

    Has no gradient. CUDA tensors run in Triton, CPU tensors and float64 in ``kernels.reference``.
    """
    if stride is None:
        stride = torch.empty(shape, device="meta").stride()
    _check(packed, shape, stride, dtype)
    return _unpack(packed, shape, stride, dtype)


def _check(
    packed: torch.Tensor, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> None:
    layout = torch.empty_strided(shape, stride, device="meta")
    count = _bytes(layout.numel())
    if torch.empty_like(layout).stride() != layout.stride():
        raise ValueError(f"stride {tuple(stride)} has gaps or overlaps in shape {tuple(shape)}")
    if packed.dtype != torch.uint8 or packed.shape != (count,) or not packed.is_contiguous():
        raise ValueError(
            f"packed must be uint8 of shape ({count},) and contiguous for a tensor of shape "
            f"{tuple(shape)}, not {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, not {dtype}")


def _bytes(signs: int) -> int:
    return (signs + 7) // 8


@torch.library.custom_op("reste::pack", mutates_args=())
def _pack(x: torch.Tensor) -> torch.Tensor:
    flat = _in_storage_order(x)
    return launch_pack(flat) if uses_triton(x) else reference.pack(flat)


@torch.library.custom_op("reste::unpack", mutates_args=())
def _unpack(
    packed: torch.Tensor, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    in_triton = uses_triton(packed) and dtype != torch.float64
    flat = (launch_unpack if in_triton else reference.unpack)(packed, math.prod(shape), dtype)
    return flat.as_strided(shape, stride)


@_pack.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(_bytes(x.numel()), dtype=torch.uint8)


@_unpack.register_fake
def _(
    packed: torch.Tensor, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    return packed.new_empty_strided(shape, stride, dtype=dtype)


def _in_storage_order(x: torch.Tensor) -> torch.Tensor:
    layout = torch.empty_like(x)
    dense = x if x.stride() == layout.stride() else layout.copy_(x)
    return dense.as_strided((x.numel(),), (1,))


def launch_pack(x: torch.Tensor) -> torch.Tensor:
    """Run the packing kernel on ``x``, (n,) and contiguous, of fp32, bf16 or fp16."""
    packed = x.new_empty(_bytes(len(x)), dtype=torch.uint8)
    if len(x):
        grid = (triton.cdiv(len(x), BLOCK),)
        _pack_kernel[grid](x, packed, len(x), BLOCK=BLOCK)
    return packed


def launch_unpack(packed: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Run the unpacking kernel, which gives (count,) of ``dtype``: fp32, bf16 or fp16."""
    y = packed.new_empty(count, dtype=dtype)
    if count:
        grid = (triton.cdiv(count, BLOCK),)
        _unpack_kernel[grid](packed, y, count, BLOCK=BLOCK)
    return y


@jit
def _pack_kernel(x_ptr, packed_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)[None, :]
    at = byte[:, None] * 8 + bit
    x = tl.load(x_ptr + at, mask=at < n, other=-1.0).to(tl.float32)
    packed = tl.sum(tl.where(x >= 0, 1, 0) << bit, axis=1)
    tl.store(packed_ptr + byte, packed.to(tl.uint8), mask=byte * 8 < n)


@jit
def _unpack_kernel(packed_ptr, y_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)[None, :]
    at = byte[:, None] * 8 + bit
    packed = tl.load(packed_ptr + byte, mask=byte * 8 < n, other=0).to(tl.int32)
    y = tl.where((packed[:, None] >> bit) & 1 != 0, 1.0, -1.0)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < n)
