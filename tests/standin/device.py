"""The stand-in, seen from within a process that runs under it.

Importing this module lets Python stand in for cuDNN, which needs a driver: a convolution checks its
tensors, launches nothing but names, and notes every copy that cuDNN would make because a tensor
lies in another layout than the others.
"""

import collections
import ctypes
import re
from typing import NamedTuple

import torch
from torch import Tensor

library = ctypes.CDLL("libcuda.so.1")
library.standin_report.restype = ctypes.c_char_p
library.standin_launch.argtypes = [ctypes.c_char_p, ctypes.c_void_p]

# NVML would count the cards that this machine has.
torch.cuda._device_count_nvml = lambda: -1

CHANNELS_LAST = torch.channels_last
layout_copies: collections.Counter[str] = collections.Counter()


class Report(NamedTuple):
    """What happened since the last ``reset``; ``violations`` since ``forget_violations``."""

    launches: dict[str, dict[str, int]]  # by kind and name: what was queued on streams
    captured: dict[str, dict[str, int]]  # the same of the graph that was made last
    waits: dict[str, int]
    collectives: list[str]  # in order, those of the graph last
    layout_copies: dict[str, int]
    violations: dict[str, int]


def reset() -> None:
    """Begin to count anew."""
    library.standin_reset()
    layout_copies.clear()


def forget_violations() -> None:
    """Begin another case."""
    library.standin_forget_violations()


def report() -> Report:
    """What happened since the last ``reset``."""
    found = Report({}, {}, {}, [], dict(layout_copies), {})
    queued = {"eager": found.launches, "captured": found.captured}
    for line in library.standin_report().decode().splitlines():
        when, what, count, name = line.split("\t")
        if what == "ordered":
            found.collectives.append(name)
        elif what == "wait":
            found.waits[name] = int(count)
        elif what == "violation":
            found.violations[name] = int(count)
        else:
            names = queued[when].setdefault(what, {})
            names[shorten(name)] = names.get(shorten(name), 0) + int(count)
    return found


def shorten(name: str) -> str:
    """The name of a kernel of torch without most of its template arguments; that of a collective
    without its communicator, of which every DDP makes its own."""
    name = re.sub(r", communicator \d+$", "", name)
    if "<" not in name:
        return name.partition("(")[0]
    own = name.partition("<")[0].rpartition("::")[2]
    parts = re.findall(r"\w*(?:[Ff]unctor|_kernel|Op)\w*", name.partition("<")[2])
    return " ".join(dict.fromkeys([own.rpartition(" ")[2], *parts[:4]]))


def _launch(name: str) -> None:
    library.standin_launch(name.encode(), torch.cuda.current_stream().cuda_stream)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The layout in which cuDNN computes: channels_last as soon as one tensor asks for it."""
    asks = (t.is_contiguous(memory_format=CHANNELS_LAST) for t in (x, weight))
    return CHANNELS_LAST if any(asks) else torch.contiguous_format


def _expect(layout: torch.memory_format, what: str, t: Tensor) -> None:
    if not t.is_contiguous(memory_format=layout):
        layout_copies[f"{what} {tuple(t.shape)} with strides {t.stride()}"] += 1


def _convolve(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    assert x.dtype == weight.dtype and x.device == weight.device, (x.dtype, weight.dtype)
    assert not transposed, "no network here has transposed convolutions"
    layout = _layout(x, weight)
    _expect(layout, "input", x)
    _expect(layout, "weight", weight)
    extent = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    ]
    _launch("cudnn forward")
    shape = (x.shape[0], weight.shape[0], *extent)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return y if bias is None else y.add_(bias[None, :, None, None])


def _convolve_backward(
    dy, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, mask
):
    assert dy.dtype == x.dtype == weight.dtype, (dy.dtype, x.dtype, weight.dtype)
    layout = _layout(x, weight)
    for what, t in (("gradient", dy), ("saved input", x), ("saved weight", weight)):
        _expect(layout, what, t)
    made = []
    for wanted, like, what in zip(mask[:2], (x, weight), ("input", "weight"), strict=True):
        if wanted:
            _launch(f"cudnn gradient of the {what}")
        made.append(torch.empty_like(like, memory_format=layout) if wanted else None)
    return *made, weight.new_empty(weight.shape[0]) if mask[2] else None


_aten = torch.library.Library("aten", "IMPL")
_aten.impl("convolution", _convolve, "CUDA")
_aten.impl("convolution_backward", _convolve_backward, "CUDA")
