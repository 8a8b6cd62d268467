"""The sign of a tensor with an estimator's gradient, as one registered op."""

import torch

from kernels import reference
from kernels._triton import jit, tl, triton, uses_triton
from kernels.estimators import get_estimator

BLOCK = 1024


def binarize(x: torch.Tensor, params: torch.Tensor, estimator: str = "reste") -> torch.Tensor:
    """y = sign(x) with sign(0) = +1, whose gradient is dx = dy * h(x).

    An estimator of weights alone may have y = sign(f(x)) instead, with its surrogate f.

    Args:
        x: floating point, of any shape and memory format. A NaN stays a NaN, in y and in dx.
        params: the estimator's parameters in the order of ``ESTIMATORS[estimator].parameters``,
            which for reste is (o, t, m): a 1-d fp32 tensor on x's device, or float64 if x is.
            Refill it in place to follow a schedule, and nothing recompiles or synchronises. An
            estimator without parameters ignores it.
        estimator: a key of ``kernels.ESTIMATORS``, whose entry gives h and its source.

    Returns:
        A tensor of x's shape, dtype and strides, of -1 and +1.

    Raises:
        ValueError: the estimator is unknown, x is not floating point, or params has a wrong size,
            is on another device or is not floating point.

    CUDA tensors run in Triton, CPU tensors and float64 in ``kernels.reference``.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, not {x.dtype}")
    check_params(params, x.device, estimator)
    return _binarize(x, params, estimator)


def check_params(params: torch.Tensor, device: torch.device, estimator: str) -> None:
    """Raise ValueError unless ``params`` are those of the known ``estimator``, on ``device``."""
    names = get_estimator(estimator).parameters
    if not names:
        return
    if params.shape != (len(names),) or not params.is_floating_point():
        raise ValueError(
            f"params must be a 1-d floating-point tensor ({', '.join(names)}) for {estimator}, "
            f"not {params.dtype} of shape {tuple(params.shape)}"
        )
    if params.device != device:
        raise ValueError(f"params is on {params.device} but x on {device}; move it there once")


def check_activations(params: torch.Tensor, device: torch.device, estimator: str) -> None:
    """``check_params``, and ValueError for an estimator of weights alone."""
    check_params(params, device, estimator)
    if other := get_estimator(estimator).activations:
        raise ValueError(f"estimator {estimator!r} is for weights; activations take {other!r}")


@torch.library.custom_op("reste::binarize", mutates_args=())
def _binarize(x: torch.Tensor, params: torch.Tensor, estimator: str) -> torch.Tensor:
    if uses_triton(x):
        return launch_forward(x, params, estimator)
    return _laid_out_like(reference.binarize(x, params, estimator), x)


@torch.library.custom_op("reste::binarize_backward", mutates_args=())
def _binarize_backward(
    grad: torch.Tensor, x: torch.Tensor, params: torch.Tensor, estimator: str
) -> torch.Tensor:
    if uses_triton(x):
        return launch_backward(grad, x, params, estimator)
    return _laid_out_like(reference.binarize_backward(grad, x, params, estimator), x)


@_binarize.register_fake
def _(x: torch.Tensor, params: torch.Tensor, estimator: str) -> torch.Tensor:
    return torch.empty_like(x)


@_binarize_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, params: torch.Tensor, estimator: str) -> torch.Tensor:
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, params, ctx.estimator = inputs
    ctx.save_for_backward(x, params)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _binarize_backward(grad, *ctx.saved_tensors, ctx.estimator), None, None


_binarize.register_autograd(_backward, setup_context=_setup_context)


def _laid_out_like(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``t`` with the strides of ``empty_like(x)``, which are x's own where x is dense.

    The kernels walk through storage in a flat order, so all their tensors must share one layout.
    The layout of a gradient is the choice of whoever made it, and ``.contiguous()`` would silently
    reorder one that is channels_last.
    """
    layout = torch.empty_like(x, dtype=t.dtype)
    return t if t.stride() == layout.stride() else layout.copy_(t)


def launch_forward(x: torch.Tensor, params: torch.Tensor, estimator: str) -> torch.Tensor:
    """Run the forward kernel on ``x``, which is fp32, bf16 or fp16."""
    x = _laid_out_like(x, x)
    y = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        wave = get_estimator(estimator).triton_surrogate
        values = params.float() if wave else None
        _forward_kernel[grid](x, values, y, x.numel(), SURROGATE=wave, BLOCK=BLOCK)
    return y


def launch_backward(
    grad: torch.Tensor, x: torch.Tensor, params: torch.Tensor, estimator: str
) -> torch.Tensor:
    """Run the backward kernel: dx like ``x``, from ``grad`` of x's shape and any layout."""
    x = _laid_out_like(x, x)
    grad = _laid_out_like(grad, x)
    dx = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        factor = get_estimator(estimator).triton_factor
        _backward_kernel[grid](grad, x, params.float(), dx, x.numel(), FACTOR=factor, BLOCK=BLOCK)
    return dx


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, params_ptr, y_ptr, n, SURROGATE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    if SURROGATE is not None:
        x = SURROGATE(x, params_ptr)
    y = tl.where(x >= 0, 1.0, tl.where(x < 0, -1.0, x))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, params_ptr, dx_ptr, n, FACTOR: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside).to(tl.float32)
    dx = tl.where(x == x, grad * FACTOR(x, params_ptr), x)  # a NaN stays a NaN
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
