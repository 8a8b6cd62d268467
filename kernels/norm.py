"""What stands between two binary convolutions, fused: ReLU, batch norm, residual and sign.

With u = relu(z) (or z), the layer's positive weight scale s, and channel statistics over all
positions of the batch,

    y = gamma (u - mean) rstd + beta + residual        rstd = 1 / sqrt(var + eps / s^2)
    yb = sign(y)                                       gradient: an estimator's h(y)

which is batch norm of s u, since a positive scale changes batch norm only through its eps. The
running statistics are those of s u, as in a network that multiplies s in. Every tensor is seen as
rows of channels, (positions, C), which is how channels_last lies in memory. The forward pass reads
z once for the statistics and once to write y and yb. In the backward pass, one pass forms
g = dy + dyb h(y) and both channel sums, and another applies the gradient of batch norm.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import _native, reference
from kernels._triton import is_watched, uses_triton
from kernels.norm_triton import (
    launch_apply,
    launch_deviations,
    launch_finish,
    launch_forward,
    launch_reduce,
    launch_statistics,
    launch_sums,
)
from kernels.sign import check_activations


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
    """The mean and rstd, (C,), of u over the batch; moves the running statistics.

    Args:
        z: (N, C) or (N, C, H, W), fp32, bf16 or fp16. float64 is computed in float64.
        running_mean, running_var: (C,), the statistics of s u, updated in place; the variance is
            the unbiased one.
        num_batches_tracked: 0-dim int64, counted up in place.
        scale: s, 0-dim, positive; None for 1.
        momentum: the share of the batch in the new running statistics.
        eps: what is added to the variance of s u.
        relu: whether u is relu(z) or z.
        sync: take the statistics over the batches of all processes of torch.distributed, which may
            differ in size; one all-reduce sums the sums, the sums of squares and the count.

    Raises:
        ValueError: shapes, devices or dtypes that do not fit, or fewer than two values per channel,
            whose variance says nothing (as torch does); the message names the argument.
    """
    check_map("z", z)
    check_channels(z, running_mean=running_mean, running_var=running_var)
    _check_scale(z, scale)
    if z.numel() <= z.shape[1] and not sync:
        raise ValueError(
            f"expected more than 1 value per channel when training, got input of shape "
            f"{tuple(z.shape)}; use a larger batch"
        )
    running = running_mean, running_var, num_batches_tracked
    compute = _statistics if is_launched(z) else _batch_statistics
    with torch.no_grad():
        return compute(z, scale, *running, momentum, eps, relu, sync)


def deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """The mean of u and the sum of squared deviations from it, (C,), for z (N, C[, H, W])."""
    if uses_triton(z):
        return launch_deviations(laid_out(z), relu)
    return _native.deviations(as_rows(z), relu)


def running_statistics(
    running_mean: Tensor, running_var: Tensor, *, scale: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The mean and rstd, (C,), of u from the running statistics of s u, for inference."""
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
        z: (N, C) or (N, C, H, W), fp32, bf16 or fp16, with arithmetic in fp32. float64 takes the
            reference and stays float64.
        weight, bias: gamma and beta, (C,).
        mean, rstd: (C,), from ``batch_statistics`` if ``training``, else from
            ``running_statistics``. In training their dependence on z is part of the gradient.
        scale: s, 0-dim, positive; None for 1. Its gradient is exact.
        residual: a tensor of z's shape, or None.
        params, estimator: as in ``kernels.binarize``; without an estimator yb is y itself.
        eps, relu: as in ``batch_statistics``.
        sync: as in ``batch_statistics``; the backward pass then sums over all processes in one
            collective. The gradients of weight, bias and scale remain those of this process.

    A NaN stays a NaN, in y, yb and every gradient that it reaches.

    Raises:
        ValueError: an unknown estimator, or shapes, devices or dtypes that do not fit; the message
            names the argument.

    CUDA tensors run in Triton, CPU tensors in fp32 and bf16 in C++ (``kernels._native``), others in
    ``kernels.reference``. Source: the folded eps and the gradient of the scale follow from the
    chain rule; the layout of the passes is that of batch norm in cuDNN and apex.
    """
    check_map("z", z)
    check_channels(z, weight=weight, bias=bias, mean=mean, rstd=rstd)
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
        check_activations(params, z.device, estimator)
    options = estimator or "", training, eps, relu, sync and training
    compute = _NormBinarize.apply if is_launched(z) else _norm_binarize
    y, yb = compute(z, weight, bias, mean, rstd, scale, residual, params, *options)
    return (y, yb) if estimator else (y, y)


def _what(t: Tensor) -> str:
    return f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"


def check_map(name: str, t: Tensor, *, flat: bool = True) -> None:
    """Raise ValueError unless ``t`` is floating point, (N, C, H, W), or with ``flat`` (N, C)."""
    if t.dim() not in ((2, 4) if flat else (4,)) or not t.is_floating_point():
        shapes = "(N, C) or (N, C, H, W)" if flat else "(N, C, H, W)"
        raise ValueError(f"{name} is {_what(t)}; it must be floating point, {shapes}")


def check_channels(z: Tensor, **vectors: Tensor) -> None:
    """Raise ValueError unless each of ``vectors`` is floating point, (C,), beside z."""
    wanted, device = z.shape[1:2], z.device
    for name, vector in vectors.items():
        if vector.shape != wanted or vector.device != device:
            raise ValueError(
                f"{name} is {_what(vector)}; it must be ({z.shape[1]},), the channels of z, and on "
                f"{z.device}"
            )
        if not vector.is_floating_point():
            raise ValueError(f"{name} is {_what(vector)}; it must be floating point")


def _check_scale(z: Tensor, scale: Tensor | None) -> None:
    if scale is not None and (scale.dim() or scale.device != z.device):
        raise ValueError(f"scale is {_what(scale)}; it must be 0-dim and on {z.device}")


def is_launched(z: Tensor) -> bool:
    """Whether the kernels are launched from here, rather than by the registered ops."""
    return not is_watched() and (uses_triton(z) or not _native.is_watched())


def as_rows(t: Tensor) -> Tensor:
    """``t``, (N, C, H, W) or (N, C), as contiguous rows (positions, C).

    They are a view where t is channels_last.
    """
    rows = t if t.dim() == 2 else t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
    return rows.contiguous()


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """The rows as a tensor of the shape of ``like``, channels_last; undoes ``as_rows``."""
    if like.dim() == 2:
        return rows
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _layout(t: Tensor) -> torch.memory_format:
    return torch.contiguous_format if t.dim() == 2 else torch.channels_last


def laid_out(t: Tensor) -> Tensor:
    """``t``, (N, C, H, W) or (N, C), such that rows of channels lie one after the other."""
    if t.dim() == 2:
        return t.contiguous()
    # The question takes a tenth of the time of a call that then does nothing.
    fits = t.is_contiguous(memory_format=torch.channels_last)
    return t if fits else t.contiguous(memory_format=torch.channels_last)


def _empty(z: Tensor) -> Tensor:
    return torch.empty_like(z, memory_format=_layout(z))


def _statistics(
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
    on_gpu = uses_triton(z)
    rows = laid_out(z) if on_gpu else as_rows(z)
    if on_gpu:
        if not sync:
            return launch_statistics(rows, scale, *running, momentum, eps, relu)
        sums = launch_sums(rows, relu)
        dist.all_reduce(sums)
        return launch_finish(sums, scale, *running, momentum, eps)
    found: tuple[Tensor, Tensor, int | Tensor] = *_native.deviations(rows, relu), len(rows)
    if sync:
        sums = reference.pack_sums(*found[:2], len(rows))
        dist.all_reduce(sums)
        found = reference.unpack_sums(sums, running_mean.dtype)
    return reference.finish_statistics(*found, scale, *running, momentum, eps)


def _normalize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    sign: bool,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """y and yb; without ``sign`` yb is empty, (0,)."""
    if uses_triton(z):
        residual = None if residual is None else laid_out(residual)
        return launch_forward(laid_out(z), weight, bias, mean, rstd, residual, sign, relu)
    rows = None if residual is None else as_rows(residual)
    y, yb = _native.norm_binarize(as_rows(z), weight, bias, mean, rstd, rows, sign, relu)
    return as_map(y, z), as_map(yb, z) if sign else yb


def _differentiate(
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
    """(g, dz, (dbias, dweight), dscale); without a scale its gradient is empty, (0,).

    g is the gradient of the residual, which is dy itself where there is no dyb.
    """
    on_gpu = uses_triton(z)
    form = laid_out if on_gpu else as_rows
    dy, dyb, y = (None if t is None else form(t) for t in (dy, dyb, y))
    rows = form(z)
    positions = z.numel() // z.shape[1]
    found = reduce(dy, dyb, y, rows, mean, rstd, params, estimator, relu, sync, positions)
    g, sums, everywhere, count = found
    if on_gpu:
        fixed = (g, rows, weight, mean, rstd, everywhere, sync, training, relu)
        dz, dscale = launch_apply(*fixed, scale, sums, eps)
        return g, dz, sums, dscale
    dz = _native.norm_binarize_apply(g, rows, weight, mean, rstd, everywhere, count, training, relu)
    dscale = weight.new_empty(0)
    if scale is not None:
        dscale = reference.scale_gradient(sums, weight, mean, rstd, scale, training, eps)
    return as_map(g, z), as_map(dz, z), sums, dscale


def reduce(
    dy: Tensor | None,
    dyb: Tensor | None,
    y: Tensor | None,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    params: Tensor,
    estimator: str,
    relu: bool,
    sync: bool,
    positions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """g and the sums of g and of g xhat, (2, C), of this process and, with ``sync``, of all.

    The maps are ``laid_out`` where ``uses_triton`` says so, else rows; ``positions`` is how many
    the statistics are over. The sums of all are what ``launch_apply`` or ``_native`` takes; the
    latter takes the number of positions of all, too, which is None without ``sync``.
    """
    fixed = dy, dyb, y, z, mean, rstd, params, estimator, relu
    if not uses_triton(z):
        g, sums = _native.norm_binarize_reduce(*fixed)
        if not sync:
            return g, sums, sums, None
        joined = torch.cat([sums.flatten(), sums.new_full((1,), positions)])
        dist.all_reduce(joined)
        return g, sums, joined[:-1].view_as(sums), joined[-1]
    packed = mean.new_empty(2 * len(mean) + 1) if sync else None
    g, sums = launch_reduce(*fixed, packed, positions)
    if packed is None:
        return g, sums, sums, None
    dist.all_reduce(packed)
    return g, sums, packed, None


class _NormBinarize(torch.autograd.Function):
    """The op ``reste::norm_binarize`` without the registration: see ``is_launched``."""

    @staticmethod
    def forward(ctx, z, weight, bias, mean, rstd, scale, residual, params, *options):  # type: ignore[no-untyped-def]
        estimator, _, _, relu, _ = options
        y, yb = _normalize(z, weight, bias, mean, rstd, residual, bool(estimator), relu)
        _keep(ctx, y, (z, weight, mean, rstd, scale, params), options, residual is not None)
        return y, yb

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dyb):  # type: ignore[no-untyped-def]
        return _gradients(ctx, dy, dyb, _differentiate)


_batch_statistics = torch.library.custom_op(
    "reste::batch_statistics",
    _statistics,
    mutates_args=("running_mean", "running_var", "num_batches_tracked"),
)


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
    """y and yb; without an estimator yb is empty, (0,)."""
    return _normalize(z, weight, bias, mean, rstd, residual, bool(estimator), relu)


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
    """As ``_differentiate``, but g is empty, (0,), where it would equal dy."""
    options = estimator, training, eps, relu, sync
    tensors = dy, dyb, y, z, weight, mean, rstd, scale, params
    g, dz, sums, dscale = _differentiate(*tensors, *options)
    return z.new_empty(0) if dyb is None else g, dz, sums, dscale


@_norm_binarize_backward.register_fake
def _(dy, dyb, y, z, weight, mean, rstd, scale, params, estimator, training, eps, relu, sync):  # type: ignore[no-untyped-def]
    nothing = weight.new_empty(0)
    return (
        z.new_empty(0) if dyb is None else _empty(z),
        _empty(z),
        mean.new_empty(2, len(mean)),
        nothing if scale is None else torch.empty_like(scale),
    )


def _keep(ctx, y, tensors, options, has_residual) -> None:  # type: ignore[no-untyped-def]
    ctx.options, ctx.has_residual = options, has_residual
    ctx.save_for_backward(y if options[0] else None, *tensors)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, dy: Tensor | None, dyb: Tensor | None, differentiate: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    """The gradients of the 13 arguments of ``reste::norm_binarize``."""
    dyb = dyb if ctx.options[0] else None
    if dy is None and dyb is None:
        return (None,) * 13
    saved = ctx.saved_tensors
    weight, scale = saved[2], saved[5]
    g, dz, sums, dscale = differentiate(dy, dyb, *saved, *ctx.options)
    dbias, dweight = (sums if sums.dtype == weight.dtype else sums.to(weight.dtype)).unbind()
    dresidual = (dy if dyb is None else g) if ctx.has_residual else None
    dscale = None if scale is None else dscale
    return dz, dweight, dbias, None, None, dscale, dresidual, *(None,) * 6


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    z, weight, _, mean, rstd, scale, residual, params, *options = inputs
    _keep(ctx, output[0], (z, weight, mean, rstd, scale, params), options, residual is not None)


def _backward(ctx, dy, dyb):  # type: ignore[no-untyped-def]
    return _gradients(ctx, dy, dyb, _norm_binarize_backward)


_norm_binarize.register_autograd(_backward, setup_context=_setup_context)
