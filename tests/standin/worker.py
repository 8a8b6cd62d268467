"""One process under the stand-in: measures the cases that it is given, and prints what it found.

``tests.standin.dry_run`` starts it. Of its output only the last line counts.
"""

import dataclasses
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from launch.bench.training import dtype_of, is_resident, make_trainer, open_loaders, repeat
from pipeline.data.cifar_files import CifarSplit
from pipeline.data.loader import Loader
from pipeline.run import processes, rendezvous
from pipeline.run.config import Config, load_config
from pipeline.train.metrics import cross_entropy
from tests import ROOT
from tests.standin import device as standin
from tests.standin.origins import origins
from tests.train.blank import BlankLoader

# DDP looks at the clock, and waits for the device, in its first ten steps.
SETTLED = 16
TIMED = 20
BATCHES = 64  # of an epoch, so that none ends while steps are counted


def open_blank(config: Config, device: torch.device) -> tuple[Loader, Loader]:
    """Loaders of training and validation images as the trainer takes them for ``config``."""
    if not is_resident(config):
        loader = BlankLoader(config, device, BATCHES)
        return loader, loader
    images = torch.zeros(BATCHES * config.data.batch_size, 32, 32, 3, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.int64)
    split = CifarSplit(images, labels, tuple("0123456789"), "")
    few = dataclasses.replace(split, images=images[:100], labels=labels[:100])
    return open_loaders(config, device, (split, few), dtype_of(config, device))


def open_step(config: Config, captured: bool, folder: Path) -> Callable[[], object]:
    """A function that takes the next training step of ``config``."""
    device = torch.device("cuda", torch.cuda.current_device())
    config = config.changed({"train.cuda_graph": "true" if captured else "false"})
    return repeat(make_trainer(config, device, open_blank(config, device), folder))


class PlainNorm(nn.BatchNorm2d):
    """Batch norm by torch's own kernels, since cuDNN's are not there."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        state = self.weight, self.bias, self.running_mean, self.running_var
        return torch.ops.aten.native_batch_norm(x, *state, True, self.momentum, self.eps)[0]


def open_plain_step() -> Callable[[], None]:
    """A step of torchvision's resnet18 in fp16: what a training costs the host without our work."""
    import torchvision

    model = torchvision.models.resnet18(norm_layer=PlainNorm)
    model = model.cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler()
    images = torch.empty(256, 3, 224, 224, dtype=torch.float16, device="cuda")
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(256, dtype=torch.int64, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = cross_entropy(model(images), labels, 0.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(case: dict) -> dict:
    """What one step of ``case`` does; see ``tests.standin.dry_run`` for both."""
    torch.cuda.reset_peak_memory_stats()
    standin.forget_violations()
    with tempfile.TemporaryDirectory() as folder:
        captured = case["captured"]
        if case["config"] == "torchvision":
            step = open_plain_step()
        else:
            path = ROOT / f"configs/{case['config']}.yaml"
            config = load_config(path, case["overrides"])
            step = open_step(config, captured, Path(folder))
        graph = settle(step, captured)
        standin.reset()
        step()
        found = standin.report()
        seconds = [_cpu_seconds(step) for _ in range(TIMED)]
        found_origins = origins(step) if case["origins"] else {}
    kernels, nodes = _merged(found.launches), _merged(graph.captured)
    return {
        **case,
        "rank": processes.rank(),
        "ranks": processes.size(),
        "launches": sum(sum(names.values()) for names in found.launches.values()),
        "kernels": kernels,
        "nodes": sum(sum(names.values()) for names in graph.captured.values()),
        "graph": nodes,
        "copies": found.launches.get("copy", {}) | graph.captured.get("copy", {}),
        "waits": found.waits,
        "layout_copies": found.layout_copies | graph.layout_copies,
        "strided_copies": _strided_copies(kernels) + _strided_copies(nodes),
        "collectives": found.collectives or graph.collectives,
        "origins": found_origins,
        "violations": standin.report().violations,
        "cpu_seconds": statistics.median(seconds),
        "least_cpu_seconds": min(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def settle(step: Callable[[], object], captured: bool) -> standin.Report:
    """Take steps until they are all alike; what the one did that captured a graph, if any did."""
    standin.reset()
    for number in itertools.count(1):
        step()
        report = standin.report()
        if report.captured or (not captured and number == SETTLED):
            return report
        assert number <= 2 * SETTLED, "no step was captured"
        standin.reset()
    raise AssertionError


def _merged(kinds: dict[str, dict[str, int]]) -> dict[str, int]:
    """All names of all kinds, the most frequent one first."""
    merged = {name: count for names in kinds.values() for name, count in names.items()}
    return dict(sorted(merged.items(), key=lambda item: -item[1]))


def _strided_copies(kernels: dict[str, int]) -> int:
    """How many copies walk through memory in two orders, as from one layout into another.

    Torch takes other kernels, or none, where both orders are the same.
    """
    names = [name for name in kernels if "direct_copy_kernel" in name]
    return sum(kernels[name] for name in names if name.startswith("elementwise_kernel"))


def _cpu_seconds(step: Callable[[], object]) -> float:
    """Of all threads: the backward pass has one of its own."""
    began = time.process_time()
    step()
    return time.process_time() - began


def main() -> None:
    """Measure the cases of the one argument, a JSON list, one after the other."""
    cases = json.loads(sys.argv[1])
    torch.backends.cudnn.benchmark = True
    folder = Path(tempfile.mkdtemp())
    rendezvous.start("cuda", 60.0, folder)
    results = []
    for case in cases:
        results.append(measure(case))
        gc.collect()
        torch.cuda.empty_cache()
    processes.barrier()
    folder.rmdir()
    print("\n" + json.dumps(results), flush=True)
    os._exit(0)  # the stand-in knows no orderly end


if __name__ == "__main__":
    main()
