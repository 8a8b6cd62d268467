"""The one loop that times calls."""

import itertools
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernels._triton import triton


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warmup: int = 2,
) -> dict[str, Tensor]:
    """Seconds of every call of each, (rounds,) float64, after ``warmup`` calls that are not timed.

    They take turns, so that a change of the machine's load meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn, (name, call) in itertools.product(range(-warmup, rounds), calls.items()):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 0:
            times[name].append(time.perf_counter() - began)
    return {name: torch.tensor(seconds, dtype=torch.float64) for name, seconds in times.items()}


def time_kernel(call: Callable[[], object], device: torch.device) -> Tensor:
    """Seconds of every call of what takes microseconds, (N,) float64.

    On a GPU they are measured by events on the device, each with an empty L2 cache.
    """
    if device.type == "cuda":
        milliseconds = triton.testing.do_bench(call, return_mode="all")
        return torch.tensor(milliseconds, dtype=torch.float64) / 1e3
    return take_turns({"": call}, 10, device)[""]
