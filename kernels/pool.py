"""What stands between a real stem and the first binary convolution, fused: ReLU, batch norm,
max-pooling and sign.

With u = relu(z) (or z) and its channel statistics over all positions of the batch,

    y = gamma (u - mean) rstd + beta
    x = the maxima of y over 3 x 3 windows at stride 2 with padding 1
    xb = sign(x)                                           gradient: an estimator's h(x)

The forward pass reads z once for the statistics (``kernels.batch_statistics``) and once to write x,
xb, the place of each maximum in its window, in one byte, and z there; y is never written. All that
batch norm's gradient sums up is zero where y is no maximum. So one pass at the size of x forms
g = dx + dxb h(x) and both channel sums, from z at the maxima, and another reads z, gathers g from
the up to four windows of each position, and writes dz.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import _native, reference
from kernels._triton import uses_triton
from kernels.norm import (
    as_map,
    as_rows,
    check_channels,
    check_map,
    is_launched,
    laid_out,
    reduce,
)
from kernels.pool_triton import empty_pooled, launch_apply, launch_forward
from kernels.sign import check_activations


def norm_pool_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    params: Tensor | None = None,
    estimator: str | None = None,
    training: bool = True,
    relu: bool = True,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """(x, xb) of this file's equations, (N, C, ceil(H / 2), ceil(W / 2)) of z's dtype,
    channels_last.

    Args:
        z: (N, C, H, W), fp32, bf16 or fp16, with arithmetic in fp32. float64 takes the reference
            and stays float64.
        weight, bias: gamma and beta, (C,).
        mean, rstd: (C,), from ``batch_statistics`` if ``training``, else from
            ``running_statistics``. In training their dependence on z is part of the gradient.
        params, estimator: as in ``kernels.binarize``; without an estimator xb is x itself.
        relu: whether batch norm is that of relu(z) or of z.
        sync: as in ``batch_statistics``; the backward pass then sums over all processes in one
            collective. The gradients of weight and bias remain those of this process.

    The gradient of a maximum belongs to the first of equal values, row by row. y is rounded to z's
    dtype before it is compared, as if it had been written. A NaN is the maximum of its windows, and
    stays a NaN in x, xb and every gradient that it reaches.

    Raises:
        ValueError: an unknown estimator, or shapes, devices or dtypes that do not fit; the message
            names the argument.

    CUDA tensors run in Triton, CPU tensors in fp32 and bf16 in C++ (``kernels._native``), others in
    ``kernels.reference``. Ties and NaN are those of ``torch.nn.functional.max_pool2d``, and the
    result is that of separate modules.
    """
    check_map("z", z, flat=False)
    check_channels(z, weight=weight, bias=bias, mean=mean, rstd=rstd)
    if params is None:
        params = weight.new_empty(0)
    if estimator:
        check_activations(params, z.device, estimator)
    options = estimator or "", training, relu, sync and training
    if is_launched(z):
        x, xb = _NormPoolBinarize.apply(z, weight, bias, mean, rstd, params, *options)
    else:
        x, xb, *_ = _norm_pool_binarize(z, weight, bias, mean, rstd, params, *options)
    return (x, xb) if estimator else (x, x)


def _pool(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sign: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, xb, the places of the maxima, uint8, and z there; without ``sign`` xb is empty, (0,)."""
    if uses_triton(z):
        return launch_forward(laid_out(z), weight, bias, mean, rstd, sign, relu)
    if _native.takes(z):
        return _native.pool(laid_out(z), weight, bias, mean, rstd, sign, relu)
    y, _ = _native.norm_binarize(as_rows(z), weight, bias, mean, rstd, None, False, relu)
    x, index, top = reference.max_pool(as_map(y, z), z)
    return x, reference.sign(x) if sign else x.new_empty(0), index, top


def _differentiate(
    dx: Tensor | None,
    dxb: Tensor | None,
    x: Tensor | None,
    index: Tensor,
    top: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    params: Tensor,
    estimator: str,
    training: bool,
    relu: bool,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    """dz and (dbias, dweight)."""
    on_gpu = uses_triton(z)
    form = laid_out if on_gpu else as_rows
    dx, dxb, x = (None if t is None else form(t) for t in (dx, dxb, x))
    rows, positions = form(z), z.numel() // z.shape[1]
    fixed = mean, rstd, params, estimator, relu, sync, positions
    g, sums, everywhere, count = reduce(dx, dxb, x, form(top), *fixed)
    if on_gpu:
        settings = everywhere, sync, training, relu
        return launch_apply(g, index, rows, weight, mean, rstd, *settings), sums
    if _native.takes(z):
        places = as_map(g, top), index, laid_out(z)
        options = count, training, relu
        return _native.unpool(*places, weight, mean, rstd, everywhere, *options), sums
    g = form(reference.unpool(as_map(g, top).to(mean.dtype), index, z))
    dz = _native.norm_binarize_apply(g, rows, weight, mean, rstd, everywhere, count, training, relu)
    return as_map(dz, z), sums


class _NormPoolBinarize(torch.autograd.Function):
    """The op ``reste::norm_pool_binarize`` without the registration: see ``norm.is_launched``."""

    @staticmethod
    def forward(ctx, z, weight, bias, mean, rstd, params, *options):  # type: ignore[no-untyped-def]
        estimator, _, relu, _ = options
        x, xb, index, top = _pool(z, weight, bias, mean, rstd, bool(estimator), relu)
        _keep(ctx, (x, index, top, z, weight, mean, rstd, params), options)
        return x, xb

    @staticmethod
    @once_differentiable
    def backward(ctx, dx, dxb):  # type: ignore[no-untyped-def]
        return _gradients(ctx, dx, dxb, _differentiate)


@torch.library.custom_op("reste::norm_pool_binarize", mutates_args=())
def _norm_pool_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    params: Tensor,
    estimator: str,
    training: bool,
    relu: bool,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``_pool``; only the first two results are differentiable."""
    return _pool(z, weight, bias, mean, rstd, bool(estimator), relu)


@_norm_pool_binarize.register_fake
def _(z, weight, bias, mean, rstd, params, estimator, training, relu, sync):  # type: ignore[no-untyped-def]
    x = empty_pooled(z)
    xb = torch.empty_like(x) if estimator else z.new_empty(0)
    return x, xb, torch.empty_like(x, dtype=torch.uint8), torch.empty_like(x)


_norm_pool_binarize_backward = torch.library.custom_op(
    "reste::norm_pool_binarize_backward", _differentiate, mutates_args=()
)


@_norm_pool_binarize_backward.register_fake
def _(dx, dxb, x, index, top, z, weight, mean, rstd, params, estimator, training, relu, sync):  # type: ignore[no-untyped-def]
    dz = torch.empty_like(z, memory_format=torch.channels_last)
    return dz, mean.new_empty(2, len(mean))


def _keep(ctx, tensors, options) -> None:  # type: ignore[no-untyped-def]
    ctx.options = options
    x, *others = tensors
    ctx.save_for_backward(x if options[0] else None, *others)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, dx: Tensor | None, dxb: Tensor | None, differentiate: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    """The gradients of the 10 arguments of ``reste::norm_pool_binarize``."""
    dxb = dxb if ctx.options[0] else None
    if dx is None and dxb is None:
        return (None,) * 10
    saved = ctx.saved_tensors
    weight = saved[4]
    dz, sums = differentiate(dx, dxb, *saved, *ctx.options)
    dbias, dweight = (sums if sums.dtype == weight.dtype else sums.to(weight.dtype)).unbind()
    return dz, dweight, dbias, *(None,) * 7


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    z, weight, _, mean, rstd, params, *options = inputs
    x, _, index, top = output
    _keep(ctx, (x, index, top, z, weight, mean, rstd, params), options)


def _backward(ctx, dx, dxb, *_):  # type: ignore[no-untyped-def]
    return _gradients(ctx, dx, dxb, _norm_pool_binarize_backward)


_norm_pool_binarize.register_autograd(_backward, setup_context=_setup_context)
