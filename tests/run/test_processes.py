"""Several processes train as one: the same numbers. What happens when one dies: tests/faults."""

import contextlib
import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from kernels import batch_statistics, norm_binarize, norm_pool_binarize, norm_prelu_binarize
from models import ARCHS, build_model
from pipeline.data.plan import Plan
from pipeline.run import processes, rendezvous
from pipeline.run.errors import UserError
from pipeline.run.signals import StopSignal
from pipeline.train.parallel import parallelize
from tests.faults.harness import EPOCHS, Lab, Run, check_same, fork, free_port
from tests.kernels.device import DEVICE, IS_INTERPRETED

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory):
    """As ``lab``, with a network of 4 to 16 channels, which forked processes know."""
    return Lab(tmp_path_factory.mktemp("lab"), "tiny")


def run(lab, name, size, *overrides):
    return Run(lab, name, size, overrides=overrides).fork()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_nothing(tiny_lab, size):
    check_same(tiny_lab.reference(size), tiny_lab.reference(1), 1e-9)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing_for_files(tiny_lab):
    """JPEG trees, through DALI where it is installed: order, crops and flips are the same too."""
    tree = tiny_lab.root / "tree"
    tree.mkdir()
    (tree / "train").symlink_to(tiny_lab.data / "train")
    (tree / "val").symlink_to(tiny_lab.data / "test")
    overrides = (
        *("data.dataset=imagenet", f"data.path={tree}", "data.size=24", "data.resize=28"),
        "data.workers=1",
    )
    one, two = (run(tiny_lab, f"files{size}", size, *overrides) for size in (1, 2))
    check_same(two, one, 1e-9)


@pytest.mark.slow
def test_indicators_are_those_of_all_processes(tiny_lab):
    """Of weights and gradients the same; of activations each process looks at samples."""
    words = "model.arch=resnet20", "indicators.enabled=true"  # with enough samples in a layer
    runs = [run(tiny_lab, f"watched{n}", n, *words) for n in (1, 2)]
    one, two = ([r for r in each.records() if r["kind"] == "epoch"] for each in runs)
    for a, b in zip(one, two, strict=True):
        assert a["indicators"]["steps"] == b["indicators"]["steps"]
        for name, figures in a["indicators"]["weights"].items():
            assert b["indicators"]["weights"][name] == pytest.approx(figures, rel=1e-6)
        for name, figures in a["indicators"]["activations"].items():
            assert b["indicators"]["activations"][name] == pytest.approx(figures, rel=0.05)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing_in_parts(tiny_lab):
    """Of a batch of 8, two processes take two parts of 2 images each."""
    one, two = (run(tiny_lab, f"parts{size}", size, "train.grad_accumulation=2") for size in (1, 2))
    check_same(two, one, 1e-9)
    assert abs(one.records()[0]["loss"] - tiny_lab.reference(1).records()[0]["loss"]) > 1e-6


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing_in_what_is_mixed(tiny_lab):
    """Neither the colours of an image nor those of its pair, also where a batch has parts."""
    words = "data.mixup=0.3", "data.jitter=0.4", "train.grad_accumulation=2"
    one, two = (run(tiny_lab, f"mixed{size}", size, *words) for size in (1, 2))
    check_same(two, one, 1e-9)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing_in_what_is_evaluated(tiny_lab):
    """Statistics taken anew, over batches of all processes, and those of averaged weights."""
    words = "train.reestimate_bn=2", "train.ema_decay=0.5", "optim.decay_norms=false"
    one, two = (run(tiny_lab, f"twins{size}", size, *words) for size in (1, 2))
    assert any(name.startswith("evaluated ") for name in one.weights())
    check_same(two, one, 1e-9)


def test_only_the_main_process_speaks(tiny_lab):
    said = tiny_lab.reference(2).said
    assert len(re.findall("val loss", said)) == EPOCHS
    assert "rank" not in said and "Warning" not in said


@pytest.mark.slow
def test_without_synchronised_batch_norm_it_is_another_training(tiny_lab):
    other = run(tiny_lab, "unsynchronised", 2, "train.sync_bn=false", "train.epochs=1").records()
    assert abs(other[0]["loss"] - tiny_lab.reference(1).records()[0]["loss"]) > 1e-6


@dataclass
class Stopped:
    """A run on two processes, asked to stop in its second epoch and started again."""

    run: Run  # which is over
    listening: list[list[str]]  # the addresses of torchrun and of the two processes
    check: str  # what the look for mistakes said before it went on


@pytest.fixture(scope="module")
def stopped(lab):
    overrides = ("data.batch_size=9",)  # which two processes cannot share: the reference has 8
    going = Run(lab, "stopped", 2, overrides=overrides).start()
    assert going.wait_until(lambda: going.lines() > 7)
    listening = [_listening(pid) for pid in [going.processes[0].pid, *going.workers()]]
    going.processes[0].send_signal(signal.SIGTERM)
    assert going.end()
    check = Run(lab, "stopped", 1, overrides=(*overrides, "--check=2")).start().finish()
    return Stopped(going.start().finish(), listening, check.said)


@linux
@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_rounded(stopped):
    """In the check before torchrun, too, which is one process that looks as for two."""
    for said in (stopped.run.said, stopped.check):
        assert "data.batch_size: 9 -> 8, a multiple of 2 processes" in said
    assert "batch_size: 8\n" in (stopped.run.folder / "config.yaml").read_text()


@linux
@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(lab, stopped):
    assert "interrupted; saved" in stopped.run.said and "going on after" in stopped.run.said
    check_same(stopped.run, lab.reference(2))


@linux
@pytest.mark.slow
def test_nothing_listens_to_other_machines(stopped):
    _, main, other = stopped.listening
    assert len(main) >= 2 and len(other) >= 1, "gloo, and the main one's store"
    assert {each for found in stopped.listening for each in found} == {"127.0.0.1"}


@pytest.mark.parametrize("arch", ARCHS)
def test_buckets_settle_without_a_trace(arch, tmp_path):
    model = build_model(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    parallel = parallelize(model, torch.device("cpu"), 60)
    assert parallel.reducer._rebuild_buckets()  # at the next pass, which is the first real one
    dist.destroy_process_group()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def _signalled_while_it_waits(rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    with StopSignal() as stop:
        stop.can_save = True
        if rank:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        else:
            time.sleep(1.5)
        first = stop.is_asked(8, 100)
        assert stop.is_asked(16, 100) and not first
        assert stop.signal == signal.SIGUSR1
    dist.destroy_process_group()


def test_a_signal_that_comes_while_others_are_waited_for_is_not_lost():
    fork(_signalled_while_it_waits, free_port(), size=2)


@pytest.mark.slow
def test_evaluation_on_two_processes_speaks_once(lab):
    best = lab.reference(2).folder / "checkpoints" / "best.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "launch.evaluate", str(best)]
    done = subprocess.run(
        [*command, f"data.path={lab.data}", "train.device=cpu"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["images"] == 13
    assert done.stderr.count("on 13 images") == 1


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(lab):
    wrong = Run(lab, "wrong", 2, overrides=("model.num_classes=3",), restarts=0)
    said = wrong.start().finish(1).said
    (line,) = [line for line in said.splitlines() if "error: " in line and "torch" not in line]
    assert line.startswith("error: model.num_classes is 3, but")
    assert "UserError" not in said  # no traceback of ours


def _listening(pid):
    """The addresses that a process listens on."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(path))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                address = bytes.fromhex(local.partition(":")[0])
                found.append(".".join(map(str, address[::-1])) if len(address) == 4 else local)
    return found


def test_a_dead_processs_words_mislead_nobody():
    """torchrun's store may still hold what those before these wrote."""
    store = dist.HashStore()
    for key, value in (("here/1", "old"), ("answer/old", "older"), ("came/older/1", "")):
        store.set(key, value)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(lambda: time.sleep(0.2) or rendezvous._meet(store, 1, 2, 9))
        main = rendezvous._meet(store, 0, 2, 9)
        assert late.result() == main


def test_a_process_that_does_not_come_is_named():
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.3))
    with pytest.raises(UserError, match="rank 1 of 2 did not come within 0.3 s"):
        rendezvous._meet(store, 0, 2, 0.3)
    with pytest.raises(UserError, match="the main process did not answer within 0.3 s"):
        rendezvous._meet(store, 1, 2, 0.3)


def test_nccl_leaves_its_traces_in_the_runs_folder(tmp_path, monkeypatch, caplog):
    """Its settings have new names: what somebody gave under an old one counts, with a line."""
    for name in (*rendezvous.RENAMED, *rendezvous.RENAMED.values(), "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "77")
    assert rendezvous._record_flights(tmp_path) == f"{tmp_path}/nccl_rank"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/nccl_rank"
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "77"
    assert not rendezvous.RENAMED.keys() & os.environ.keys()
    said = "TORCH_NCCL_TRACE_BUFFER_SIZE has a new name: set TORCH_FR_BUFFER_SIZE"
    assert caplog.messages == [said]
    monkeypatch.setattr(rendezvous._Group, "traces", f"{tmp_path}/nccl_rank")
    error = RuntimeError("Watchdog caught collective operation timeout: OpType=ALLREDUCE")
    assert "nccl_rank" not in rendezvous._blame(error, {0: ""})
    (tmp_path / "nccl_rank1").touch()
    said = rendezvous._blame(error, {0: ""})
    assert "OpType=ALLREDUCE" in said and f"{tmp_path}/nccl_rank*" in said


def test_who_is_to_blame(monkeypatch):
    monkeypatch.setattr(rendezvous, "size", lambda: 4)
    error = RuntimeError("[gloo/pair.cc:1] Connection closed\nat ...")
    for ends, words in (
        ({0: "", 1: "", 3: ""}, "rank 2 does not answer, it hangs or is lost ([gloo/pair.cc:1]"),
        ({0: "", 2: "UserError: no room"}, "rank 2 ended with UserError: no room ("),
        ({0: "", 1: "", 2: "", 3: ""}, "the connection broke ("),
        ({}, "rank 0 does not answer"),
    ):
        assert rendezvous._blame(error, ends).startswith(words)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert rendezvous._blame(error, {}).startswith("torchrun does not answer")


def _agree(rank, port, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    rendezvous.start("cpu", 30, Path(folder))
    assert processes.from_main(lambda: b"%d" % rank) == b"0"
    assert processes.from_main(bytes) == b""

    def fail():
        raise UserError("only here: \udcff")  # a name that is not UTF-8

    with pytest.raises(UserError, match="only here: \udcff"):
        processes.from_main(fail)
    processes.agree({"seed": 1})
    with pytest.raises(UserError, match="data.size is 0 in the main process and something else"):
        processes.agree({"seed": 1, "data.size": rank})
    rendezvous.stop()


def test_the_main_process_decides_for_all(tmp_path):
    fork(_agree, free_port(), str(tmp_path), size=2)


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


def _synchronised(rank, port, sizes, folder, triton, block):
    if triton and IS_INTERPRETED:
        import importlib

        for name in ("norm", "pool", "rprelu"):
            module = importlib.import_module(f"kernels.{name}")
            module.uses_triton = lambda x: True
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes)
    )
    z, residual, dy, dyb = _data(sum(sizes), torch.float32 if triton else torch.float64)
    first = sum(sizes[:rank])
    mine = [t[first : first + sizes[rank]] for t in (z, residual, dy, dyb)]
    torch.save(block(*mine, sync=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _data(n, dtype):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-9, 10, (n, 3, 4, 5), generator=generator) + 0.25
    maps = z, *(torch.randn(z.shape, generator=generator) for _ in range(3))
    return [each.to(DEVICE, dtype) for each in maps]


def _running(like):
    """The statistics that a training begins with, for three channels."""
    return [t.to(like.device) for t in (like.new_zeros(3), like.new_ones(3), torch.tensor(0))]


def _block(z, residual, dy, dyb, *, sync):
    leaves = [z, residual, torch.tensor([0.5, 1, 2]), torch.tensor([0.1, 0, 1]), torch.tensor(0.2)]
    z, residual, weight, bias, scale = (t.to(z).detach().requires_grad_() for t in leaves)
    running = _running(z)
    statistics = batch_statistics(z, *running, scale=scale, sync=sync)
    params = torch.tensor([1.5, 1.5, 0.1]).to(z)
    outputs = norm_binarize(
        *(z, weight, bias, *statistics),
        scale=scale, residual=residual, params=params, estimator="reste", sync=sync,
    )  # fmt: skip
    leaves = [z, residual, weight, bias, scale]
    grads = torch.autograd.grad(outputs, leaves, (dy, dyb), allow_unused=not len(z))
    return [t.detach() for t in (*outputs, *grads[:2])], list(grads[2:]), list(running[:2])


def _react(z, residual, dy, dyb, *, sync):
    """The same of a block of ReActNet."""
    vectors = [[0.5, 1, 2], [0.1, 0, 1], [0.3, 0.2, -0.1], [0.1, 0, -0.1], [0, 0.2, 0.4]]
    leaves = [z, residual, torch.tensor(0.2), *map(torch.tensor, vectors)]
    leaves = [t.to(z).detach().requires_grad_() for t in leaves]
    z, residual, scale, weight, bias, slope, shift, offset = leaves
    running = _running(z)
    statistics = batch_statistics(z, *running, scale=scale, relu=False, sync=sync)
    params = torch.tensor([1.5, 1.5, 0.1]).to(z)
    outputs = norm_prelu_binarize(
        *(z, weight, bias, *statistics, residual, slope, shift),
        offset=offset, scale=scale, params=params, estimator="reste", sync=sync,
    )  # fmt: skip
    grads = torch.autograd.grad(outputs, leaves, (dy, dyb), allow_unused=not len(z))
    return [t.detach() for t in (*outputs, *grads[:2])], list(grads[2:]), list(running[:2])


def _stem(z, residual, dx, dxb, *, sync):
    """The same of a stem, whose maps are half as large and have no residual."""
    leaves = [z, torch.tensor([0.5, -1, 2]), torch.tensor([0.1, 0, 1])]
    z, weight, bias = leaves = [t.to(z).detach().requires_grad_() for t in leaves]
    running = _running(z)
    statistics = batch_statistics(z, *running, sync=sync)
    params = torch.tensor([1.5, 1.5, 0.1]).to(z)
    outputs = norm_pool_binarize(
        *(z, weight, bias, *statistics), params=params, estimator="reste", sync=sync
    )
    grads = [t[:, :, :2, :3] for t in (dx, dxb)]
    grads = torch.autograd.grad(outputs, leaves, grads, allow_unused=not len(z))
    return [t.detach() for t in (*outputs, grads[0])], list(grads[1:]), list(running[:2])


@pytest.mark.parametrize("triton", [False, pytest.param(True, marks=pytest.mark.triton)])
@pytest.mark.parametrize(
    ("sizes", "block"),
    [
        ((3, 3), _block),
        ((0, 6), _block),
        ((2, 1, 4), _block),
        ((0, 1, 4), _stem),
        ((0, 1, 4), _react),
    ],
)
def test_synchronised_block_of_uneven_batches(sizes, block, triton, tmp_path):
    fork(_synchronised, free_port(), sizes, str(tmp_path), triton, block, size=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    tolerance = 1e-5 if triton else 1e-12
    whole = block(*_data(sum(sizes), torch.float64), sync=False)
    for i, expected in enumerate(whole[0]):  # maps: the parts, one after the other
        joined = torch.cat([part[0][i] for part in parts])
        torch.testing.assert_close(joined.double(), expected, rtol=0, atol=10 * tolerance)
    for i, expected in enumerate(whole[1]):  # parameters: the sum of the parts
        total = sum(part[1][i].double() for part in parts)
        torch.testing.assert_close(total, expected, rtol=10 * tolerance, atol=10 * tolerance)
    for part in parts:  # running statistics: the same everywhere
        for found, expected in zip(part[2], whole[2], strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def _like_torch(rank, port, sizes):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes)
    )
    first = sum(sizes[:rank])
    data = [t[first : first + sizes[rank]] for t in _data(sum(sizes), torch.float32)]
    z, residual, dy = (t.contiguous(memory_format=torch.channels_last) for t in data[:3])
    norm = torch.nn.SyncBatchNorm(3, device="cuda")
    running = _running(z)
    scale = torch.tensor(0.2).cuda()
    leaves = [z.requires_grad_(), residual.requires_grad_(), norm.weight, norm.bias]
    theirs = norm(scale * z.relu()) + residual
    statistics = batch_statistics(z, *running, scale=scale, sync=True)
    options = {"scale": scale, "residual": residual, "sync": True}
    ours, _ = norm_binarize(z, norm.weight, norm.bias, *statistics, **options)
    found = [ours, *torch.autograd.grad(ours, leaves, dy), *running[:2]]
    expected = [theirs, *torch.autograd.grad(theirs, leaves, dy)]
    expected += [norm.running_mean, norm.running_var]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(3, 3), (1, 6)])
def test_on_the_gpu_it_equals_torchs_own(sizes):
    """Both processes on one GPU, over gloo: NCCL wants a GPU for each."""
    fork(_like_torch, free_port(), sizes, size=len(sizes))
