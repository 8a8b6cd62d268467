"""The 3x3 convolution of binary maps with binary weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from kernels import _native
from kernels.norm import laid_out


def convolve(xb: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The convolution with padding 1, (N, O, ceil(H / stride), ceil(W / stride)).

    Args:
        xb: (N, C, H, W), floating point.
        weight: (O, C, 3, 3), of the same dtype, or of any under autocast.
        stride: of both dimensions.

    Where all values are +1 and -1 and lie in fp32 or bf16 on a CPU, the sums are counted from bits,
    which is exact, the bits are all that is kept for the backward pass, and the gradient of the
    weight is made from them. Elsewhere it is torch's convolution.
    """
    if _fits(xb, weight):
        xb, weight = laid_out(xb), laid_out(weight)
        if (found := _native.convolve(xb.detach(), weight.detach(), stride)) is not None:
            return _Convolve.apply(xb, weight, stride, *found)
    return F.conv2d(xb, weight, stride=stride, padding=1)


def _fits(xb: Tensor, weight: Tensor) -> bool:
    """Whether the library takes these."""
    alike = xb.dim() == 4 and xb.dtype == weight.dtype and xb.shape[1] % 8 == 0 and xb.numel() > 0
    return alike and not _native.is_watched() and _native.takes(xb)


class _Convolve(torch.autograd.Function):
    """Gives ``z``, which is made already, its gradient."""

    @staticmethod
    def forward(
        ctx: Any, xb: Tensor, weight: Tensor, stride: int, z: Tensor, bits: Tensor
    ) -> Tensor:
        ctx.shape, ctx.stride = xb.shape, stride
        ctx.save_for_backward(bits, weight)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight = ctx.saved_tensors
        dz, dxb, dw = laid_out(dz), None, None
        if ctx.needs_input_grad[0]:
            dxb = _native.input_gradient(dz, ctx.shape, weight, ctx.stride)
            if dxb is None:
                dxb = conv2d_input(ctx.shape, weight, dz, stride=ctx.stride, padding=1)
        if ctx.needs_input_grad[1]:
            dw = _native.weight_gradient(bits, dz, ctx.shape, weight, ctx.stride)
        return dxb, dw, None, None, None
