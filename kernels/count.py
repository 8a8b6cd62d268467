"""The counts of a training step in one launch: loss, hits, and steps whose loss is not finite."""

import torch
from torch import Tensor

from kernels import reference
from kernels._triton import is_watched, jit, tl, uses_triton

TILE = 4096  # the logits that one program reads
TOP = 5  # the k of the top-k accuracy beside top-1


def tally(
    sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    loss: Tensor,
    watch: Tensor | None = None,
    everywhere: Tensor | None = None,
) -> None:
    """Add a batch to ``sums`` and a step to ``watch``, in place.

    The rank of an image is the number of classes that come before its own: those with a greater
    logit, and those with the same logit and a smaller index. With it,

        sums += (n loss, images of rank < 1, images of rank < 5, n) if loss is finite
        in_a_row = in_a_row + 1 if bad else 0;  longest = max(longest, in_a_row)
        first = step if bad and first < 0 else first;  step += 1

    Args:
        sums: (4,) fp64.
        logits: (N, C), C at least 1, floating point.
        labels: (N,) int64; n of them are not negative, the others are left out.
        loss: 0-dim, floating point: the mean over those n images.
        watch: (4,) int64: ``step``, the number of steps so far; ``in_a_row``, the bad steps up to
            now without a good one between them; ``longest``, the largest value of ``in_a_row``;
            ``first``, the number of the first bad step, or -1. None: no step is watched.
        everywhere: 0-dim, floating point: the sum of the losses of all processes. A step is bad if
            it is not finite. None: if loss is not.

    Raises:
        ValueError: a tensor of another shape or dtype.

    No sum depends on the order of the programs. CUDA tensors run in Triton, CPU tensors and
    fp64 logits in ``kernels.reference``.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"logits must be (N, C) and labels (N,) int64, not {tuple(logits.shape)} and "
            f"{labels.dtype} of {tuple(labels.shape)}"
        )
    if loss.dim() or (sums.shape, sums.dtype) != ((4,), torch.float64):
        raise ValueError(
            f"loss must be 0-dim and sums (4,) fp64, not {tuple(loss.shape)} and {sums.dtype} of "
            f"{tuple(sums.shape)}"
        )
    if watch is not None and (watch.shape, watch.dtype) != ((4,), torch.int64):
        raise ValueError(f"watch must be (4,) int64, not {watch.dtype} of {tuple(watch.shape)}")
    counts = labels.new_empty(0) if watch is None else watch
    (_tally if is_watched() else _add)(sums, counts, logits, labels, loss, everywhere)


@torch.no_grad()
def _add(
    sums: Tensor,
    watch: Tensor,
    logits: Tensor,
    labels: Tensor,
    loss: Tensor,
    everywhere: Tensor | None,
) -> None:
    add = launch if uses_triton(logits) else reference.tally
    add(sums, watch, logits, labels, loss, everywhere, TOP)


_tally = torch.library.custom_op("reste::tally", _add, mutates_args=("sums", "watch"))


@_tally.register_fake
def _(sums, watch, logits, labels, loss, everywhere):  # type: ignore[no-untyped-def]
    return None


def launch(
    sums: Tensor,
    watch: Tensor,
    logits: Tensor,
    labels: Tensor,
    loss: Tensor,
    everywhere: Tensor | None,
    top: int,
) -> None:
    """``reference.tally`` in Triton."""
    rows, classes = logits.shape
    block_c = 1 << (classes - 1).bit_length()
    block_m = max(1, TILE // block_c)
    _kernel[(max(1, -(-rows // block_m)),)](
        *(sums, watch if len(watch) else None, logits.contiguous(), labels.contiguous()),
        *(loss, everywhere, rows, classes),
        TOP=top,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
    )


@jit
def _kernel(  # type: ignore[no-untyped-def]
    sums_ptr,
    watch_ptr,
    logits_ptr,
    labels_ptr,
    loss_ptr,
    everywhere_ptr,
    rows,
    classes,
    TOP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    label = tl.load(labels_ptr + row, mask=row < rows, other=-1)
    seen = label >= 0
    at = row.to(tl.int64)[:, None] * classes + c[None, :]
    here = seen[:, None] & (c < classes)[None, :]
    logits = tl.load(logits_ptr + at, mask=here, other=0.0).to(tl.float32)
    own = tl.sum(tl.where(c[None, :] == label[:, None], logits, 0.0), 1)[:, None]
    before = (logits > own) | ((logits == own) & (c[None, :] < label[:, None]))
    rank = tl.sum((before & here).to(tl.int32), 1)
    loss = tl.load(loss_ptr).to(tl.float32)
    is_finite = tl.abs(loss) < float("inf")
    hits = tl.sum((seen & (rank < 1)).to(tl.int32), 0)
    tl.atomic_add(sums_ptr + 1, hits.to(tl.float64), mask=is_finite)
    hits = tl.sum((seen & (rank < TOP)).to(tl.int32), 0)
    tl.atomic_add(sums_ptr + 2, hits.to(tl.float64), mask=is_finite)
    if tl.program_id(0) > 0:
        return
    count = tl.sum(seen.to(tl.int32), 0)
    for start in range(BLOCK_M, rows, BLOCK_M):  # one program sums all, in one order
        row = start + tl.arange(0, BLOCK_M)
        label = tl.load(labels_ptr + row, mask=row < rows, other=-1)
        count += tl.sum((label >= 0).to(tl.int32), 0)
    images = count.to(tl.float64)
    tl.store(sums_ptr, tl.load(sums_ptr) + images * loss.to(tl.float64), mask=is_finite)
    tl.store(sums_ptr + 3, tl.load(sums_ptr + 3) + images, mask=is_finite)
    if watch_ptr is not None:
        is_bad = is_finite == 0
        if everywhere_ptr is not None:
            is_bad = (tl.abs(tl.load(everywhere_ptr).to(tl.float32)) < float("inf")) == 0
        step = tl.load(watch_ptr)
        in_a_row = tl.where(is_bad, tl.load(watch_ptr + 1) + 1, 0)
        longest = tl.maximum(tl.load(watch_ptr + 2), in_a_row)
        first = tl.load(watch_ptr + 3)
        tl.store(watch_ptr, step + 1)
        tl.store(watch_ptr + 1, in_a_row)
        tl.store(watch_ptr + 2, longest)
        tl.store(watch_ptr + 3, tl.where(is_bad & (first < 0), step, first))
