"""Several processes train as one: the same numbers, and nothing lost when one of them dies."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from kernels import batch_statistics, norm_binarize
from pipeline.augment import Plan
from pipeline.checkpoint import load
from tests.imagefolder_fixtures import cifar_tree

LEFT_OUT = ("kind", "seconds", "images_per_second", "data_wait")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return cifar_tree(tmp_path_factory.mktemp("cifar"), more_tests=1)


@pytest.fixture(scope="module")
def start(cifar, tmp_path_factory):
    """Starts a training run on ``size`` processes; its folder comes with the process."""
    root = tmp_path_factory.mktemp("runs")
    config = root / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8, eval_batch_size: 5}, seed: 3,"
        "train: {epochs: 3, precision: fp64, device: cpu, timeout: 60}, log: {every: 1, eta: 0},"
        "checkpoint: {keep: 9, every_steps: 2}, deterministic: true}"
    )

    def start(name, size, *overrides, restarts=0):
        command = [sys.executable, "-m"]
        if size > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            command += [f"--max-restarts={restarts}", "-m"]
        command += ["launch.train", str(config), f"data.path={cifar}", f"run.dir={root}"]
        process = subprocess.Popen(
            [*command, f"run.name={name}", *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        return process, root / name

    return start


@pytest.fixture(scope="module")
def run(start):
    """Runs to the end; gives the run's folder and what was printed."""

    def run(name, size, *overrides, code=0, **options):
        process, folder = start(name, size, *overrides, **options)
        output = process.communicate(timeout=200)[1]
        assert process.returncode == code, output
        return folder, output

    return run


@pytest.fixture(scope="module")
def alone(run):
    return run("alone", 1)[0]


@pytest.fixture(scope="module")
def two(run):
    return run("two", 2)


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in LEFT_OUT} for line in lines]


def weights(folder):
    return load(folder / "checkpoints" / "epoch_0003.pt")["state_dict"]


def same_training(ours, theirs, tolerance):
    for a, b in zip(records(ours), records(theirs), strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    for key, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [2, 4])
def test_the_number_of_processes_changes_nothing(size, alone, two, run):
    folder = two[0] if size == 2 else run("four", 4)[0]
    same_training(folder, alone, 1e-9)


def test_only_the_main_process_speaks(two):
    assert len(re.findall("val loss", two[1])) == 3 and "rank" not in two[1]


def test_without_synchronised_batch_norm_it_is_another_training(alone, run):
    folder, _ = run("unsynchronised", 2, "train.sync_bn='false'")
    ours, theirs = records(folder), records(alone)
    assert abs(ours[0]["loss"] - theirs[0]["loss"]) > 1e-6


def wait_for_step(folder, process, step):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def workers(process):
    """The processes that torchrun started, by rank."""
    found = {}
    for folder in os.listdir("/proc"):
        try:
            stat = open(f"/proc/{folder}/stat").read().split()  # noqa: SIM115
            if folder.isdigit() and int(stat[3]) == process.pid:
                environment = open(f"/proc/{folder}/environ", "rb").read().split(b"\0")  # noqa: SIM115
                rank = [e[5:] for e in environment if e.startswith(b"RANK=")]
                found[int(rank[0])] = int(folder)
        except (OSError, IndexError, ValueError):
            continue
    return [found[rank] for rank in sorted(found)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_and_nothing_changes(rank, two, start):
    process, folder = start(f"killed{rank}", 2, restarts=2)
    wait_for_step(folder, process, 4)
    os.kill(workers(process)[rank], signal.SIGKILL)
    output = process.communicate(timeout=200)[1]
    assert process.returncode == 0, output
    assert "going on after" in output
    same_training(folder, two[0], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_to_one_process_stops_all_for_good(two, start, run):
    process, folder = start("stopped", 2, restarts=2)
    wait_for_step(folder, process, 3)
    os.kill(workers(process)[1], signal.SIGTERM)
    output = process.communicate(timeout=200)[1]
    assert process.returncode == 1, output  # torchrun's own answer
    assert "interrupted; saved" in output and "this job was asked to stop" in output
    assert len(records(folder)) < len(records(two[0]))
    run("stopped", 1)  # goes on where it was, on one process
    same_training(folder, two[0], 1e-9)


def test_a_batch_that_cannot_be_shared_is_rounded(run):
    folder, output = run("rounded", 4, "data.batch_size=9", "train.epochs=1")
    assert "data.batch_size: 9 -> 8, a multiple of 4 processes" in output
    assert "batch_size: 8\n" in (folder / "config.yaml").read_text()


def test_an_error_names_its_rank(run):
    output = run("wrong", 2, "model.num_classes=3", code=1)[1]
    for rank in (0, 1):
        assert f"rank {rank}: error: model.num_classes is 3" in output
    assert "UserError" not in output  # no traceback of ours


@given(
    images=st.integers(1, 50), batch=st.integers(1, 6), size=st.integers(1, 5), train=st.booleans()
)
def test_shares_make_up_the_whole(images, batch, size, train):
    whole = Plan(images, batch * size, train, 0)
    parts = [Plan(images, batch * size, train, 0, rank, size) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(part) - 1 <= part.batches <= len(part) for part in parts) or not train
    if train:
        for at in range(len(whole)):
            joined = np.concatenate([part.indices((0, at)) for part in parts])
            assert joined.tolist() == whole.indices((0, at)).tolist()
    else:
        seen = [part.indices((0, at)).tolist() for part in parts for at in range(part.batches)]
        assert sorted(itertools.chain.from_iterable(seen)) == list(range(images))
        assert all(seen)


def _synchronised(rank, port, sizes, folder, triton):
    if triton:
        import importlib

        module = importlib.import_module("kernels.batchnorm")
        module.uses_triton = lambda x: True
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes)
    )
    z, residual, dy, dyb = _data(sum(sizes), torch.float32 if triton else torch.float64)
    first = sum(sizes[:rank])
    mine = [t[first : first + sizes[rank]] for t in (z, residual, dy, dyb)]
    torch.save(_block(*mine, sync=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _data(n, dtype):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-9, 10, (n, 3, 4, 5), generator=generator).to(dtype) + 0.25
    return [z, *(torch.randn(z.shape, generator=generator).to(dtype) for _ in range(3))]


def _block(z, residual, dy, dyb, *, sync):
    leaves = [z, residual, torch.tensor([0.5, 1, 2]), torch.tensor([0.1, 0, 1]), torch.tensor(0.2)]
    z, residual, weight, bias, scale = (t.to(z.dtype).detach().requires_grad_() for t in leaves)
    running = torch.zeros(3, dtype=z.dtype), torch.ones(3, dtype=z.dtype), torch.tensor(0)
    statistics = batch_statistics(z, *running, scale=scale, sync=sync)
    params = torch.tensor([1.5, 1.5, 0.1], dtype=z.dtype)
    outputs = norm_binarize(
        *(z, weight, bias, *statistics),
        scale=scale, residual=residual, params=params, estimator="reste", sync=sync,
    )  # fmt: skip
    leaves = [z, residual, weight, bias, scale]
    grads = torch.autograd.grad(outputs, leaves, (dy, dyb), allow_unused=not len(z))
    return [t.detach() for t in (*outputs, *grads[:2])], list(grads[2:]), list(running[:2])


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("sizes", [(3, 3), (1, 6), (2, 1, 4)])
def test_synchronised_block_of_uneven_batches(sizes, triton, tmp_path):
    port = 29500 + os.getpid() % 500 + len(sizes) + sizes[0] + 10 * triton
    arguments = (port, sizes, str(tmp_path), triton)
    multiprocessing.spawn(_synchronised, arguments, nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    tolerance = 1e-5 if triton else 1e-12
    whole = _block(*_data(sum(sizes), torch.float64), sync=False)
    for i, expected in enumerate(whole[0]):  # maps: the parts, one after the other
        joined = torch.cat([part[0][i] for part in parts])
        torch.testing.assert_close(joined.double(), expected, rtol=0, atol=10 * tolerance)
    for i, expected in enumerate(whole[1]):  # parameters: the sum of the parts
        total = sum(part[1][i].double() for part in parts)
        torch.testing.assert_close(total, expected, rtol=10 * tolerance, atol=10 * tolerance)
    for part in parts:  # running statistics: the same everywhere
        for found, expected in zip(part[2], whole[2], strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
