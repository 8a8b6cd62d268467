"""One process under the stand-in: times cases of the kernels' benchmark as on a GPU.

Prints, as one line of JSON, what was queued and captured for each.
"""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from launch.bench import device_clock, kernels
from launch.bench.cases import Case, convolution_ops, convolutions, layers
from launch.bench.device_clock import Phase
from models import build_model
from tests.standin import device as standin

DEVICE, DTYPE = torch.device("cuda", 0), torch.float16


def cases(images: int) -> list[Case]:
    """The first of each op and convolution of a network, and the stem of ImageNet's."""
    model, ops = build_model("resnet20"), convolution_ops(DEVICE)
    found = layers("resnet18", build_model("resnet18"), images, 224)
    found += convolutions("resnet20", model, images, 32, ops)
    return list({case.op: case for case in reversed(found)}.values())


def measure(case: Case, provider: str, mode: str) -> dict[str, Any]:
    """How ``provider`` is timed, and what a graph of it and its calls, one by one, launch."""
    kept = torch.float32 if provider == "official" else DTYPE
    build = kernels._build_convolution if case.channels else kernels._build
    leaves, grads, run = build(case, provider, DEVICE, kept)
    phases = kernels.make_phases(case, mode, leaves, grads, run, DTYPE, DEVICE)
    standin.forget_violations()
    way = device_clock.time_phases(phases).way
    graph = standin.report()
    queued, waits = queue(phases)
    return {
        "case": [case.op, provider, mode],
        "way": way,
        "cold": [phase.is_cold for phase in phases],
        "captured": count(graph.captured) if way == "graph" else 0,
        "queued": queued,
        "waits": waits,
        "violations": graph.violations,
    }


def queue(phases: Sequence[Phase]) -> tuple[int, dict[str, int]]:
    """What the calls of ``phases`` launch one by one, and where the host waits in them."""
    standin.reset()
    device_clock.queue(phases, external=False)
    found = standin.report()
    return count(found.launches), found.waits


def count(kinds: dict[str, dict[str, int]]) -> int:
    """All launches and copies."""
    return sum(sum(names.values()) for names in kinds.values())


def uncapturable() -> list[str]:
    """The ways in which calls are timed that a graph cannot hold: one asks whether it is captured,
    the other reads a number."""
    x = torch.zeros(1, device=DEVICE)

    def refuse() -> None:
        x.add_(1)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not in a graph")

    calls = refuse, lambda: x.item()
    return [device_clock.time_phases([Phase(call)]).way for call in calls]


def main(images: int, providers: Sequence[str]) -> None:
    """Measure every case; ``images`` of each."""
    torch.backends.cudnn.enabled = False  # its batch norm is not there, torch's own is
    with device_clock.own_stream(DEVICE):
        found = [
            measure(case, provider, mode)
            for case, provider in itertools.product(cases(images), providers)
            if case.has(provider)
            for mode in case.modes
        ]
        peak = torch.cuda.max_memory_allocated()
        ways = uncapturable()
    print("\n" + json.dumps({"cases": found, "ways": ways, "peak": peak}), flush=True)
    os._exit(0)  # the stand-in knows no orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
