"""Where torch's profiler finds that the time of a training step goes, by group of operators.

An operator's time belongs to the group of the innermost operator around it that has one. On a GPU
it is that of the kernels themselves, as the device takes it, within steps that find the caches as a
training does; the host's time is no part of it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from kernels import _native
from launch.bench.results import device_name, new_figure, results_file, save

STEPS = 5  # steps that are profiled, after 3 that are not
GROUPS = {  # what the names of a group's operators begin with
    "convolutions": (
        "aten::convolution",
        "aten::conv2d",
        "ConvolutionBackward0",
        "native::convolve",
        "native::input_gradient",
        "native::weight_gradient",
    ),
    "weights": ("reste::binarize_weights",),  # before reste::binarize, with which it begins, too
    "fused blocks": (
        "reste::batch_statistics",
        "reste::norm_binarize",
        "reste::norm_pool_binarize",
        "reste::binarize",
    ),
    "optimizer": ("Optimizer.step",),
    "augmentation": ("reste::crop_flip_normalize",),
}


def groups(take_step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Microseconds that a step spends in each group."""
    for _ in range(3):
        take_step()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with calls_named(), profile(activities=activities) as profiler:
        for _ in range(STEPS):
            take_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    spent = group_times(profiler.events() or [], device)
    return {group: microseconds / STEPS for group, microseconds in spent.items()}


@contextlib.contextmanager
def calls_named() -> Iterator[None]:
    """Calls of the C++ library are seen by the profiler: convolutions are no operators of torch."""
    call = _native._call

    def named(name: str, like: Tensor, *arguments: Any) -> Any:
        with record_function(f"native::{name}"):
            return call(name, like, *arguments)

    _native._call = named
    try:
        yield
    finally:
        _native._call = call


def group_times(events: Sequence[Any], device: torch.device) -> dict[str, float]:
    """Microseconds of all ``events`` by group.

    On a GPU the time is that of the kernels that operators launch, else that of the operators.
    """
    spent = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        if device.type == "cuda":
            own = sum(kernel.duration for kernel in event.kernels)
        else:
            own = event.self_cpu_time_total
        spent[_group(event)] += own
    return spent


def _group(event: Any) -> str:
    while event is not None:
        for group, beginnings in GROUPS.items():
            if event.name.startswith(beginnings):
                return group
        event = event.cpu_parent
    return "other"


def plot(spent: Mapping[str, float], file: str, title: str, device: torch.device) -> None:
    """Draw a step with a bar for each group, into docs/results/<file>_<device>.png."""
    if (figure := new_figure(9, 3)) is None:
        return
    axes = figure.subplots()
    axes.barh(list(spent), list(spent.values()))
    axes.invert_yaxis()
    axes.set_xlabel("microseconds of a training step")
    axes.set_title(f"{title}, {device_name(device)}")
    save(figure, results_file(file, device).with_suffix(".png"))
