"""The model of scaling: that it counts what the code sends, and says what NCCL says."""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launch.scaling import (
    COUNTS,
    LIMITS,
    TABLES,
    Nccl,
    Plan,
    buckets,
    network,
    norm_bytes,
    share,
    step,
)
from launch.train import divide
from models import build_model
from models.layers import BinaryConv2d, NormBinarize
from pipeline import distributed
from pipeline.config import load_config

ROOT = Path(__file__).resolve().parent.parent
needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


@pytest.mark.parametrize("title", TABLES)
def test_the_page_holds_what_the_program_prints(title, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/scaling.md").read_text()
    assert TABLES[title]() in page, "make scaling, and copy its tables to docs/scaling.md"


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@needs_distributed
@pytest.mark.parametrize(("arch", "classes", "size"), [("resnet18", 1000, 32), ("resnet20", 10, 8)])
def test_batch_norm_sends_what_is_counted(arch, classes, size, alone, monkeypatch):
    sent, original = [], dist.all_reduce

    def record(tensor):
        sent.append(tensor.nbytes)
        return original(tensor)

    monkeypatch.setattr(dist, "all_reduce", record)
    model = build_model(arch, num_classes=classes)
    for module in model.modules():
        if isinstance(module, NormBinarize):
            module.sync = True
    model(torch.randn(2, 3, size, size)).sum().backward()
    expected = map(norm_bytes, network(arch).norms)
    assert sorted(sent) == sorted(itertools.chain.from_iterable(expected))


@pytest.mark.parametrize("arch", LIMITS)
def test_gradients_of_binary_weights_come_last(arch):
    """So that nothing is left to hide their all-reduce behind: Plan.overlap is False."""
    model = build_model(arch)
    binary = [m.weight for m in model.modules() if isinstance(m, BinaryConv2d)]
    order = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: order.append(p.numel()))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert sorted(order[-len(binary) :]) == sorted(w.numel() for w in binary)
    assert network(arch).binary == sum(w.numel() for w in binary)


def test_small_all_reduces_take_what_nccl_itself_expects():
    """It logged 25.214764 us for 128 bytes on 2 nodes of 8 H100 (NVIDIA/nccl issue 1453)."""
    assert Nccl(slack=1).reduce(128, 16) == pytest.approx(25.214764e-6, rel=1e-3)


@pytest.mark.parametrize(("megabytes", "measured"), [(1, 88e-6), (10, 157e-6), (100, 647e-6)])
def test_large_all_reduces_take_what_was_measured(megabytes, measured):
    """On 2 nodes of 8 H100 with InfiniBand, in one piece (drmysore/nebius-h100-16gpu-benchmark)."""
    fabric, sent = Nccl(), megabytes * 1e6
    pieces = (buckets(sent) - 1) * fabric.reduce_gradients(0, 16)
    assert fabric.reduce_gradients(sent, 16) - pieces == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("batch", [256, 750, 8192])
@pytest.mark.parametrize("gpus", COUNTS)
def test_batches_are_rounded_as_in_training(batch, gpus, monkeypatch):
    config = load_config(ROOT / "configs/cifar10_resnet20.yaml", [f"data.batch_size={batch}"])
    monkeypatch.setattr(distributed, "size", lambda: gpus)
    assert divide(config).data.batch_size == share(batch, gpus) * gpus


def test_one_gpu_talks_to_nobody():
    s = step(network("resnet18"), 1, 750)
    assert (s.norms, s.gradients, s.exposed) == (0, 0, 0)


@pytest.mark.parametrize("gpus", COUNTS[1:])
def test_less_talk_is_never_slower(gpus):
    chosen = network("resnet18")
    whole = step(chosen, gpus, 8192).device
    for plan in (Plan(group=8), Plan(group=1), Plan(gradient_bytes=2), Plan(overlap=True)):
        assert step(chosen, gpus, 8192, plan=plan).device <= whole


@needs_distributed
def test_collectives_are_measured(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        "-m",
        "launch.collectives",
        str(ROOT / "configs/cifar10_resnet20.yaml"),
    ]
    done = subprocess.run(
        [*command, "train.device=cpu", "data.batch_size=4", "--rounds=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "docs/results/collectives_cpu.csv", newline="") as file:
        rows = {row["mode"]: row for row in csv.DictReader(file)}
    modes = "step_local step_gradients step norms_forward norms_backward gradients one_value"
    assert list(rows) == modes.split()
    assert all(float(row["p50"]) > 0 for row in rows.values())
    assert rows["step"]["case"] == "cifar10_resnet20/2x2/fp32/gloo"
