"""What stands between two binary convolutions of ReActNet, fused: batch norm, residual, RPReLU and
RSign.

With the layer's positive weight scale s and channel statistics over all positions of the batch,

    v = gamma (z - mean) rstd + beta + residual        rstd = 1 / sqrt(var + eps / s^2)
    y = v where v > 0, slope v elsewhere, + shift
    yb = sign(y + offset)                              gradient: an estimator's h(y + offset)

where slope, shift and offset are learned, one for each channel. RPReLU has a shift before its slope
too: it adds to beta, and has the gradient of beta. Statistics, and the gradient of batch norm from
that of v, are those of ``kernels.norm``. The forward pass reads z and residual and writes y and yb.
The backward pass keeps z and residual, and makes v and y again: one pass forms the gradient of v,
which is that of the residual, and five channel sums, and another applies batch norm's gradient.
Source: Liu et al., ReActNet, ECCV 2020 (arXiv:2003.03488).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import _native, reference
from kernels._triton import uses_triton
from kernels.norm import as_map, as_rows, check_channels, check_map, laid_out
from kernels.norm_triton import launch_apply
from kernels.rprelu_triton import launch_forward, launch_reduce
from kernels.sign import check_activations


def norm_prelu_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    *,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    params: Tensor | None = None,
    estimator: str | None = None,
    training: bool = True,
    eps: float = 1e-5,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """(y, yb) of this file's equations, of z's shape and dtype, channels_last.

    Args:
        z: (N, C, H, W), fp32, bf16 or fp16, with arithmetic in fp32. float64 takes the reference
            and stays float64.
        weight, bias: gamma and beta, (C,).
        mean, rstd: (C,), from ``batch_statistics`` without ReLU if ``training``, else from
            ``running_statistics``. In training their dependence on z is part of the gradient.
        residual: a tensor of z's shape.
        slope, shift: (C,).
        offset: (C,); needed with an estimator.
        scale, eps, sync: as in ``kernels.norm_binarize``.
        params, estimator: as in ``kernels.binarize``; without an estimator yb is y itself.

    A NaN stays a NaN, in y, yb and the gradients of z, residual and slope that it reaches.

    Raises:
        ValueError: an unknown estimator, or shapes, devices or dtypes that do not fit; the message
            names the argument.

    CUDA tensors run in Triton, CPU tensors in fp32 and bf16 in C++ (``kernels._native``), others in
    ``kernels.reference``.
    """
    check_map("z", z, flat=False)
    vectors = {"weight": weight, "bias": bias, "mean": mean, "rstd": rstd}
    vectors |= {"slope": slope, "shift": shift}
    check_channels(z, **vectors if offset is None else vectors | {"offset": offset})
    if residual.shape != z.shape or residual.device != z.device:
        raise ValueError(
            f"residual is of shape {tuple(residual.shape)} on {residual.device}; it must have the "
            f"shape and device of z, {tuple(z.shape)} on {z.device}"
        )
    if (estimator is None) != (offset is None):
        raise ValueError("offset goes with an estimator; give both or none")
    params = weight.new_empty(0) if params is None else params
    if estimator:
        check_activations(params, z.device, estimator)
    learned = slope, shift, offset, scale, params
    options = estimator or "", training, eps, sync and training
    y, yb = _op(z, weight, bias, mean, rstd, residual.to(z.dtype), *learned, *options)
    return (y, yb) if estimator else (y, y)


@torch.library.custom_op("reste::norm_prelu_binarize", mutates_args=())
def _op(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    params: Tensor,
    estimator: str,
    training: bool,
    eps: float,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    """y and yb; without an offset yb is empty, (0,)."""
    affine = weight, bias, mean, rstd
    if uses_triton(z):
        return launch_forward(laid_out(z), *affine, laid_out(residual), slope, shift, offset)
    y, yb = _native.norm_prelu_binarize(
        as_rows(z), *affine, as_rows(residual), slope, shift, offset
    )
    return as_map(y, z), yb if offset is None else as_map(yb, z)


@torch.library.custom_op("reste::norm_prelu_binarize_backward", mutates_args=())
def _backward_op(
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
    scale: Tensor | None,
    params: Tensor,
    estimator: str,
    training: bool,
    eps: float,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dresidual, dz, (dbias, dweight, dshift, dslope, doffset), dscale); without a scale its
    gradient is empty, (0,)."""
    on_gpu = uses_triton(z)
    form = laid_out if on_gpu else as_rows
    dy, dyb = (None if t is None else form(t) for t in (dy, dyb))
    rows, learned = form(z), (slope, shift, offset, params, estimator)
    maps = dy, dyb, rows, form(residual), weight, bias, mean, rstd
    compute = launch_reduce if on_gpu else _native.norm_prelu_binarize_reduce
    g, sums = compute(*maps, *learned)
    everywhere = _summed(sums[:2], z) if sync else sums[:2]
    if on_gpu:
        fixed = g, rows, weight, mean, rstd, everywhere, sync, training, False
        return g, *_in_order(launch_apply(*fixed, scale, sums, eps), sums)
    count = everywhere[-1] if sync else None
    both = everywhere[: 2 * len(mean)].view(2, -1) if sync else everywhere
    dz = _native.norm_binarize_apply(g, rows, weight, mean, rstd, both, count, training, False)
    dscale = weight.new_empty(0)
    if scale is not None:
        dscale = reference.scale_gradient(sums[:2], weight, mean, rstd, scale, training, eps)
    return as_map(g, z), as_map(dz, z), sums, dscale


def _in_order(applied: tuple[Tensor, Tensor], sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return applied[0], sums, applied[1]


def _summed(sums: Tensor, z: Tensor) -> Tensor:
    """The sums over all processes, and after them the number of positions of all."""
    joined = torch.cat([sums.flatten(), sums.new_full((1,), z.numel() // z.shape[1])])
    dist.all_reduce(joined)
    return joined


@_op.register_fake
def _(z, weight, bias, mean, rstd, residual, slope, shift, offset, *others):  # type: ignore[no-untyped-def]
    y = torch.empty_like(z, memory_format=torch.channels_last)
    return y, z.new_empty(0) if offset is None else torch.empty_like(y)


@_backward_op.register_fake
def _(dy, dyb, z, residual, weight, bias, mean, rstd, slope, shift, offset, scale, *others):  # type: ignore[no-untyped-def]
    g = torch.empty_like(z, memory_format=torch.channels_last)
    nothing = weight.new_empty(0)
    dscale = nothing if scale is None else torch.empty_like(scale)
    return g, torch.empty_like(g), mean.new_empty(5, len(mean)), dscale


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    z, weight, bias, mean, rstd, residual, *learned = inputs[:11]
    ctx.options = inputs[11:]
    ctx.save_for_backward(z, residual, weight, bias, mean, rstd, *learned)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dyb):  # type: ignore[no-untyped-def]
    """The gradients of the 15 arguments of ``reste::norm_prelu_binarize``."""
    dyb = dyb if ctx.options[0] else None
    if dy is None and dyb is None:
        return (None,) * 15
    offset, scale = ctx.saved_tensors[8:10]
    g, dz, sums, dscale = _backward_op(dy, dyb, *ctx.saved_tensors, *ctx.options)
    dbias, dweight, dshift, dslope, doffset = sums.to(ctx.saved_tensors[2].dtype).unbind()
    learned = dslope, dshift, None if offset is None else doffset, None if scale is None else dscale
    return dz, dweight, dbias, None, None, g, *learned, *(None,) * 5


_op.register_autograd(_backward, setup_context=_setup_context)
