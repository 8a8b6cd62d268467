"""The model of scaling: that it counts what the code sends, and says what NCCL says."""

import csv
import functools
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from launch.bench.collectives import against_the_model
from launch.bench.scaling import (
    COUNTS,
    TABLES,
    Nccl,
    Plan,
    buckets,
    gradients,
    network,
    norm_bytes,
    share,
    step,
)
from models import build_model
from models.layers import NormBinarize
from pipeline.data.batch import divide_batch
from pipeline.run.config import load_config
from pipeline.train.parallel import parallelize
from tests import PATIENCE, ROOT

ARCHS = ("resnet18", "resnet20")
with open(ROOT / "docs/results/collectives_cpu.csv", newline="") as results:
    MEASURED = {
        case: list(rows)
        for case, rows in itertools.groupby(csv.DictReader(results), lambda row: row["case"])
    }
needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


@pytest.mark.parametrize("title", TABLES)
def test_the_page_holds_what_the_program_prints(title, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/scaling.md").read_text()
    assert TABLES[title]() in page, "make scaling, and copy its tables to docs/scaling.md"


@pytest.mark.parametrize(("case", "lines"), MEASURED.items())
def test_the_page_holds_what_was_measured(case, lines):
    page = (ROOT / "docs/scaling.md").read_text()
    arch = case.partition("/")[0].partition("_")[2]
    for line in against_the_model(arch, lines).splitlines():
        assert line in page


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(arch):
    model = build_model(arch, num_classes=10 if arch == "resnet20" else 1000)
    model.binarize_by_stage = True
    model.to(memory_format=torch.channels_last)
    return model, torch.randn(2, 3, 32, 32)


@needs_distributed
@pytest.mark.parametrize("arch", ARCHS)
def test_batch_norm_sends_what_is_counted(arch, alone, monkeypatch):
    sent, original = [], dist.all_reduce

    def record(tensor):
        sent.append(tensor.nbytes)
        return original(tensor)

    monkeypatch.setattr(dist, "all_reduce", record)
    model, images = make(arch)
    for module in model.modules():
        if isinstance(module, NormBinarize):
            module.sync = True
    model(images).sum().backward()
    expected = [norm_bytes(channels) for stage in network(arch) for channels in stage.norms]
    assert sorted(sent) == sorted(itertools.chain.from_iterable(expected))


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_come_by_stage_the_last_first(arch):
    """So that those of the last stages, most of all, travel while the others are made."""
    model, images = make(arch)
    order = []
    for name, parameter in model.named_parameters():
        hook = functools.partial(lambda stage, _: order.append(stage), name.partition(".")[0])
        parameter.register_post_accumulate_grad_hook(hook)
    model(images).sum().backward()
    stages = [name for name, child in model.named_children() if [*child.parameters()]]
    assert [name for name, _ in itertools.groupby(order)] == stages[::-1]


@needs_distributed
@pytest.mark.parametrize("arch", ARCHS)
def test_ddp_sums_the_buckets_that_are_counted(arch, alone):
    """From the first step on, and before conv1's gradient is there."""
    model, images = make(arch)
    events = []

    def record(_, bucket):
        events.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel = parallelize(model, torch.device("cpu"), 60)
    parallel.register_comm_hook(None, record)

    def mark(module, inputs, z):
        z.register_hook(lambda _: events.append("conv1"))

    model.conv1.register_forward_hook(mark)
    parallel(images).sum().backward()
    sizes = gradients(network(arch))
    expected = [sum(sizes[place] for place in bucket) for bucket in buckets(sizes)]
    assert events == [*expected[:-1], "conv1", expected[-1]]


def test_small_all_reduces_take_what_nccl_itself_expects():
    """It logged 25.214764 us for 128 bytes on 2 nodes of 8 H100 (NVIDIA/nccl issue 1453)."""
    assert Nccl(slack=1).small(128, 16) == pytest.approx(25.214764e-6, rel=1e-3)


@pytest.mark.parametrize(("megabytes", "measured"), [(1, 88e-6), (10, 157e-6), (100, 647e-6)])
def test_large_all_reduces_take_what_was_measured(megabytes, measured):
    """On 2 nodes of 8 H100 with InfiniBand (drmysore/nebius-h100-16gpu-benchmark)."""
    assert Nccl().large(megabytes * 1e6, 16) == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("batch", [256, 750, 8192])
@pytest.mark.parametrize("gpus", COUNTS)
def test_batches_are_rounded_as_in_training(batch, gpus):
    config = load_config(ROOT / "configs/cifar10_resnet20.yaml", [f"data.batch_size={batch}"])
    assert divide_batch(config, gpus).data.batch_size == share(batch, gpus) * gpus


def test_one_gpu_talks_to_nobody():
    s = step(network("resnet18"), 1, 750)
    assert (s.norms, s.exposed) == (0, 0)


@pytest.mark.parametrize("gpus", COUNTS[1:])
def test_less_talk_is_never_slower(gpus):
    chosen = network("resnet18")
    whole = step(chosen, gpus, 8192).seconds
    for plan in (Plan(group=8), Plan(group=1), Plan(gradient_bytes=2)):
        assert step(chosen, gpus, 8192, plan).seconds <= whole
    assert step(chosen, gpus, 8192, Plan(overlap=False)).seconds > whole


@pytest.mark.slow
@needs_distributed
def test_collectives_are_measured(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        "-m",
        "launch.benchmark",
        "collectives",
        "cifar10_resnet20",
    ]
    done = subprocess.run(
        [*command, "train.device=cpu", "data.batch_size=4", "--rounds=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "docs/results/collectives_cpu.csv", newline="") as file:
        rows = {row["mode"]: row for row in csv.DictReader(file)}
    modes = "step_local step_gradients step norms_forward norms_backward gradients one_value"
    assert list(rows) == modes.split()
    assert all(float(row["p50"]) > 0 for row in rows.values())
    assert rows["step"]["case"] == "cifar10_resnet20/2x2/fp32/gloo"
