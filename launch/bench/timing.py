"""Times calls: here by the host's clock, in launch/bench/device_clock.py by the device's."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from launch.bench import device_clock
from launch.bench.device_clock import Phase, Timed


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


def time_phases(phases: Sequence[Phase], device: torch.device) -> Timed:
    """Seconds of every call of what takes microseconds; on a GPU as launch/bench/device_clock.py
    says, else by the clock of the host."""
    if device.type == "cuda":
        return device_clock.time_phases(phases)

    def call() -> None:
        for phase in phases:
            phase.call()

    return Timed(take_turns({"": call}, 10, device)[""], "host")


def time_kernel(call: Callable[[], object], device: torch.device) -> Tensor:
    """``time_phases`` of one phase, cold: seconds, (N,) float64."""
    return time_phases([Phase(call)], device).seconds
