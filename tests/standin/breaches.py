"""Breaks the rules that the stand-in watches over, one after the other, while it runs under it.

Prints, as one line of JSON, what was noted for each: a check that never fires would prove nothing.
"""

import ctypes
import json
import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from kernels import sign
from tests.standin import device as standin

launch_forward = partial(sign.launch_forward, params=torch.empty(0), estimator="ste")


def capture() -> torch.cuda.graph:
    """A capture that ends with the block it is used for."""
    return torch.cuda.graph(torch.cuda.CUDAGraph())


def load_a_kernel_in_a_capture() -> None:
    """The first launch of a Triton kernel loads it, and that is for the steps before a capture."""
    x = torch.zeros(64, device="cuda")
    with capture():
        launch_forward(x)


def wait_in_a_capture() -> None:
    """The host asks for a number that a graph has not computed yet."""
    x = torch.zeros(1, device="cuda")
    with capture():
        float(x)


def leave_a_stream_behind() -> None:
    """A second stream works for the graph, and nothing waits for it."""
    x, other = torch.zeros(4, device="cuda"), torch.cuda.Stream()
    with capture():
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x.add_(1)


def work_beside_a_capture() -> None:
    """A second stream works that takes no part in the capture."""
    x, other = torch.zeros(4, device="cuda"), torch.cuda.Stream()
    with capture(), torch.cuda.stream(other):
        x.add_(1)


def give_memory_of_another_device() -> None:
    """A kernel on the first device gets a tensor of the second one."""
    launch_forward(torch.zeros(64, device="cuda:1"))


def give_memory_of_the_host() -> None:
    """A kernel gets a tensor that lies on no device."""
    launch_forward(torch.zeros(64))


def give_memory_that_was_freed() -> None:
    """An address is kept for longer than the memory that was there."""
    x = torch.zeros(1 << 24, device="cuda")
    address = ctypes.c_void_p(x.data_ptr())
    del x
    torch.cuda.empty_cache()
    standin.library.cudaMemsetAsync(address, 0, ctypes.c_size_t(4), None)
    standin.library.cudaGetLastError()  # the next launch would tell of it


def mix_layouts() -> None:
    """A contiguous map meets a weight in channels_last."""
    x = torch.zeros(2, 8, 4, 4, device="cuda")
    F.conv2d(x, torch.zeros(8, 8, 3, 3, device="cuda").to(memory_format=torch.channels_last))


def wait_for_the_device() -> None:
    """The host asks for a number."""
    float(torch.zeros(1, device="cuda"))


# Loading a kernel comes first: whoever launches it later finds it loaded.
BREACHES: tuple[Callable[[], None], ...] = (
    load_a_kernel_in_a_capture,
    wait_in_a_capture,
    leave_a_stream_behind,
    work_beside_a_capture,
    give_memory_of_another_device,
    give_memory_of_the_host,
    give_memory_that_was_freed,
    mix_layouts,
    wait_for_the_device,
)


def noted(breach: Callable[[], None]) -> list[str]:
    """What the stand-in notes about ``breach``."""
    stream = torch.cuda.current_stream()
    standin.reset()
    standin.forget_violations()
    try:
        breach()
    except (RuntimeError, ValueError):  # as CUDA's own errors would end it
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
    found = standin.report()
    return [*found.violations, *found.layout_copies, *found.waits]


if __name__ == "__main__":
    print(json.dumps({breach.__name__: noted(breach) for breach in BREACHES}), flush=True)
    os._exit(0)  # the stand-in knows no orderly end
