"""The binary weights of a whole network in one launch: signs and scales of every layer.

For each weight w of n elements this gives sign(w) and the scale s = mean |w|. The gradient, also
of all layers in one launch, is

    dw = dsign h(w) + ds / n sign(w)

with an estimator's h; an estimator may ask for sign(f(w)) instead, with its surrogate f. In the
second term sign(0) is 0, because it is the derivative of |w|. As in ReSTE's official code, the
scale is one number for a layer, not one for a channel, and it is not detached from the gradient.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import _native, reference
from kernels._triton import arrivals, is_last, is_watched, jit, tl, uses_triton
from kernels.estimators import get_estimator
from kernels.sign import check_params

BLOCK = 1024  # the elements of a weight that one program takes


def binarize_weights(
    weights: Sequence[Tensor],
    params: Tensor,
    estimator: str = "reste",
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The signs and the scales of all weights.

    Args:
        weights: at least one (O, I, kH, kW), all fp32 or all float64. Those in channels_last are
            read where they lie, the others are copied.
        params, estimator: as in ``kernels.binarize``, for all weights.
        dtype: the dtype of the signs, which is that of the convolution; by default the weights'.

    Returns:
        A list of the signs, each of its weight's shape, channels_last, and a list of the scales,
        0-dim and of the weights' dtype. A NaN stays a NaN in its sign and in its layer's scale.

    Raises:
        ValueError: no weights, an unknown estimator, or shapes, devices or dtypes that do not fit;
            the message names the argument.

    CUDA tensors run in Triton, CPU tensors in fp32 and bf16 in C++ (``kernels._native``), others in
    ``kernels.reference``.
    """
    if not weights:
        raise ValueError("weights is empty; give at least one")
    first = weights[0]
    for n, w in enumerate(weights):
        if w.dim() != 4 or not w.numel() or w.device != first.device or w.dtype != first.dtype:
            raise ValueError(
                f"weights[{n}] is {w.dtype} of shape {tuple(w.shape)} on {w.device}; weights must "
                f"be (O, I, kH, kW), not empty, and all of {first.dtype} on {first.device}"
            )
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weights are {first.dtype}; keep them in float32 or float64")
    check_params(params, first.device, estimator)
    dtype = dtype or first.dtype
    if not _is_launched(first, dtype, estimator):
        signs, scales = _binarize_weights(_flat(weights), params, estimator, dtype)
        return _parts(signs, weights), list(scales.unbind())
    results = _BinarizeWeights.apply(params, estimator, dtype, *weights)
    return list(results[: len(weights)]), list(results[len(weights) :])


def _is_launched(first: Tensor, dtype: torch.dtype, estimator: str) -> bool:
    """Whether what makes the signs is called from here, rather than by the registered op."""
    by_library = not _native.is_watched() and _native.takes_weights(first, dtype, estimator)
    return not is_watched() and (uses_triton(first) or by_library)


def joined(weights: Sequence[Tensor]) -> list[Tensor]:
    """Weights (O, I, kH, kW) as parts of one tensor, channels_last.

    What is made anew in every step has to be joined before its signs are taken: the kernels keep a
    table of where weights lie beside each other, and a capture can make no new one.
    """
    return _parts(torch.cat(_flat(weights)), weights)


def _flat(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each (O, I, kH, kW) as (n,), a view where it is channels_last."""
    return [t.permute(0, 2, 3, 1).reshape(-1) for t in maps]


def _laid_out(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each as a channels_last tensor, a copy where it is none."""
    layout = torch.channels_last
    return [t if t.is_contiguous(memory_format=layout) else t.contiguous(memory_format=layout)
            for t in maps]  # fmt: skip


def _parts(joined: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of ``joined``, one after the other in the shapes of ``like``, channels_last."""
    parts = joined.split([t.numel() for t in like])
    shaped = []
    for part, t in zip(parts, like, strict=True):
        o, i, height, width = t.shape
        shaped.append(part.view(o, height, width, i).permute(0, 3, 1, 2))
    return shaped


class _BinarizeWeights(torch.autograd.Function):
    """The op ``reste::binarize_weights`` without the registration: see ``is_watched``."""

    @staticmethod
    def forward(ctx, params, estimator, dtype, *weights):  # type: ignore[no-untyped-def]
        ctx.estimator = estimator
        ctx.save_for_backward(params, *weights)
        laid_out = _laid_out(weights)
        compute = launch_forward if uses_triton(weights[0]) else _native.binarize_weights
        signs, scales = compute(laid_out, params, estimator, dtype)
        return *_parts(signs, laid_out), *scales.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        params, *weights = ctx.saved_tensors
        laid_out, n = _laid_out(weights), len(weights)
        dsigns, dscales = _laid_out(grads[:n]), grads[n:]
        on_gpu = uses_triton(weights[0])
        compute = launch_backward if on_gpu else _native.binarize_weights_backward
        dw = compute(dsigns, dscales, laid_out, params, ctx.estimator)
        return None, None, None, *_parts(dw, laid_out)


@torch.library.custom_op("reste::binarize_weights", mutates_args=())
def _binarize_weights(
    weights: list[Tensor], params: Tensor, estimator: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The signs of all flat weights, one after the other, and the scales (layers,)."""
    compute = launch_forward if uses_triton(weights[0]) else reference.binarize_weights
    return compute(weights, params, estimator, dtype)


@torch.library.custom_op("reste::binarize_weights_backward", mutates_args=())
def _binarize_weights_backward(
    dsigns: Tensor, dscales: Tensor, weights: list[Tensor], params: Tensor, estimator: str
) -> Tensor:
    """The gradients of all flat weights, one after the other, in the weights' dtype."""
    parts = dsigns.contiguous().split([len(w) for w in weights])
    compute = launch_backward if uses_triton(weights[0]) else reference.binarize_weights_backward
    return compute(parts, dscales.unbind(), weights, params, estimator)


@_binarize_weights.register_fake
def _(weights, params, estimator, dtype):  # type: ignore[no-untyped-def]
    total = sum(w.numel() for w in weights)
    return weights[0].new_empty(total, dtype=dtype), weights[0].new_empty(len(weights))


@_binarize_weights_backward.register_fake
def _(dsigns, dscales, weights, params, estimator):  # type: ignore[no-untyped-def]
    return weights[0].new_empty(len(dsigns))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    weights, params, ctx.estimator, _ = inputs
    ctx.save_for_backward(params, *weights)


def _op_backward(ctx, dsigns, dscales):  # type: ignore[no-untyped-def]
    params, *weights = ctx.saved_tensors
    flat = _binarize_weights_backward(dsigns, dscales, weights, params, ctx.estimator)
    return list(flat.split([len(w) for w in weights])), None, None, None


_binarize_weights.register_autograd(_op_backward, setup_context=_setup_context)


# Cached, since parameters stay where they are: a network has one table, and CUDA graphs read it on.
@cache
def _tables(
    offsets: tuple[int, ...], sizes: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tables that tell each program what to work on, both int64 and on ``device``.

    The first has a row for every chunk of a weight: how many elements it lies behind the first
    weight, its first element in the flat signs, its number of elements, and its layer. The second
    has a row for every layer: its first chunk, its number of chunks, and its number of elements.
    """
    chunks: list[tuple[int, ...]] = []
    layers: list[tuple[int, ...]] = []
    at = 0
    for layer, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        layers.append((len(chunks), -(-size // BLOCK), size))
        for first in range(0, size, BLOCK):
            count = min(BLOCK, size - first)
            chunks.append((offset + first, at + first, count, layer))
        at += size
    return torch.tensor(chunks, device=device), torch.tensor(layers, device=device)


def _tables_of(weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    begin, itemsize = weights[0].data_ptr(), weights[0].itemsize
    offsets = tuple((w.data_ptr() - begin) // itemsize for w in weights)
    sizes = tuple(w.numel() for w in weights)
    return _tables(offsets, sizes, weights[0].device)


def launch_forward(
    weights: list[Tensor], params: Tensor, estimator: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``reference.binarize_weights`` in Triton; the weights are flat or channels_last."""
    chunks, layers = _tables_of(weights)
    first = weights[0]
    signs = first.new_empty(sum(w.numel() for w in weights), dtype=dtype)
    partials, scales = first.new_empty(len(chunks)), first.new_empty(len(layers))
    wave = get_estimator(estimator).triton_surrogate
    _forward_kernel[(len(chunks),)](
        *(first, chunks, layers, params.float() if wave else None),
        *(signs, partials, arrivals(first), scales),
        SURROGATE=wave,
        ALIGNED=_aligned(weights),
        BLOCK=BLOCK,
    )
    return signs, scales


def launch_backward(
    dsigns: Sequence[Tensor],
    dscales: Sequence[Tensor],
    weights: list[Tensor],
    params: Tensor,
    estimator: str,
) -> Tensor:
    """``reference.binarize_weights_backward`` in Triton.

    The gradients are read where they lie: joined, they would be written and read once more.
    """
    chunks, layers = _tables_of(weights)
    dw = weights[0].new_empty(sum(w.numel() for w in weights))
    _backward_kernel[(len(chunks),)](
        *(weights[0], chunks, layers, tuple(dsigns), tuple(dscales), params.float(), dw),
        FACTOR=get_estimator(estimator).triton_factor,
        ALIGNED=_aligned(weights) and _aligned(dsigns),
        BLOCK=BLOCK,
    )
    return dw


def _aligned(weights: Sequence[Tensor]) -> bool:
    """Whether every weight begins at a multiple of 16 elements of the flat signs and of 16 bytes of
    memory, so that a thread can load several elements at once."""
    return all(w.numel() % 16 == 0 and w.data_ptr() % 16 == 0 for w in weights)


@jit
def _chunk(weights_ptr, chunks_ptr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row of the table that this program works on: see ``_tables``."""
    row = chunks_ptr + 4 * tl.program_id(0)
    w_ptr = weights_ptr + tl.load(row)
    first = tl.load(row + 1)
    if ALIGNED:
        w_ptr = tl.multiple_of(w_ptr, 16)
        first = tl.multiple_of(first, 16)
    return w_ptr, first, tl.load(row + 2), tl.load(row + 3)


@jit
def _load(ptr, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first ``count`` of BLOCK elements, and zeros; without a mask, several at once."""
    at = tl.arange(0, BLOCK)
    if count == BLOCK:  # noqa: SIM108, since a mask would be evaluated in both cases
        values = tl.load(ptr + at)
    else:
        values = tl.load(ptr + at, mask=at < count, other=0.0)
    return values


@jit
def _store(ptr, values, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    if count == BLOCK:
        tl.store(ptr + at, values)
    else:
        tl.store(ptr + at, values, mask=at < count)


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    weights_ptr,
    chunks_ptr,
    layers_ptr,
    params_ptr,
    signs_ptr,
    partials_ptr,
    arrivals_ptr,
    scales_ptr,
    SURROGATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    w_ptr, first, count, layer = _chunk(weights_ptr, chunks_ptr, ALIGNED)
    w = _load(w_ptr, count, BLOCK)
    x = w
    if SURROGATE is not None:
        x = SURROGATE(w, params_ptr)
    sign = tl.where(x >= 0, 1.0, tl.where(x < 0, -1.0, x))
    _store(signs_ptr + first, sign.to(signs_ptr.dtype.element_ty), count, BLOCK)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(tl.abs(w), 0))
    begin = tl.load(layers_ptr + 3 * layer)
    chunks = tl.load(layers_ptr + 3 * layer + 1).to(tl.int32)
    if is_last(arrivals_ptr + layer, chunks):
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, chunks, BLOCK):
            at = start + tl.arange(0, BLOCK)
            part = partials_ptr + begin + at
            total += tl.load(part, mask=at < chunks, other=0.0, cache_modifier=".cg")
        size = tl.load(layers_ptr + 3 * layer + 2)
        tl.store(scales_ptr + layer, tl.sum(total, 0) / size)


@jit
def _pointer(pointers, layer):  # type: ignore[no-untyped-def]
    """The one of the launch's ``pointers`` that is of ``layer``."""
    address = pointers[0].to(tl.int64)
    for i in tl.static_range(1, len(pointers)):
        address = tl.where(layer == i, pointers[i].to(tl.int64), address)
    return address.to(pointers[0].dtype)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    weights_ptr,
    chunks_ptr,
    layers_ptr,
    dsign_ptrs,
    dscale_ptrs,
    params_ptr,
    dw_ptr,
    FACTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    w_ptr, first, count, layer = _chunk(weights_ptr, chunks_ptr, ALIGNED)
    begin = tl.load(layers_ptr + 3 * layer)
    dsign_ptr = _pointer(dsign_ptrs, layer) + (tl.program_id(0) - begin) * BLOCK
    if ALIGNED:
        dsign_ptr = tl.multiple_of(dsign_ptr, 16)
    w = _load(w_ptr, count, BLOCK)
    dsign = _load(dsign_ptr, count, BLOCK).to(tl.float32)
    dscale = tl.load(_pointer(dscale_ptrs, layer)) / tl.load(layers_ptr + 3 * layer + 2)
    slope = tl.where(w > 0, dscale, tl.where(w < 0, -dscale, 0.0))
    dw = tl.where(w == w, dsign * FACTOR(w, params_ptr) + slope, w)  # a NaN stays a NaN
    _store(dw_ptr + first, dw, count, BLOCK)
