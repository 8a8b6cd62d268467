"""Breaks real training runs and compares what comes out with a run that was left alone.

A trial starts a tiny network on a few processes under torchrun (CPU, gloo), breaks it once or
twice at random moments, starts it again where torchrun does not, and compares weights and
metrics.jsonl. Everything is drawn from the trial's seed; only the machine's speed is not.
"""

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from pipeline.run.checkpoint import CheckpointStore, load
from tests import PATIENCE
from tests.data.fixtures import cifar_tree
from tests.kernels.device import IS_INTERPRETED
from tests.train.tiny import TINY

EPOCHS = 3  # of a whole run, unless its Lab says otherwise
LINES = 6  # an epoch's in metrics.jsonl: those of 5 steps, and its own
HUNG = 30  # seconds after which a process that hangs is noticed; a busy machine may take as long
NOT_COMPARED = ("seconds", "images_per_second", "data_wait")
CONFIG = """
seed: 3
deterministic: true
model: {arch: ARCH, num_classes: 2}
data: {batch_size: 8, eval_batch_size: 5}
train: {epochs: EPOCHS, precision: fp64, device: cpu}
log: {every: 1, eta: 0}
checkpoint: {keep: 3, every_steps: 2}
"""
# Ways of torchrun: that of ``make``, and two where its store outlives a restart; on two nodes, of
# which this machine plays both, each torchrun counts restarts for itself.
MEETINGS = {
    "make": ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1"],
    "standalone": ["--standalone"],
    "two nodes": ["--nnodes=2", "--rdzv-backend=c10d", "--local-addr=127.0.0.1", "--rdzv-id=x"],
}
# Processes that need no torchrun are forked from one that has imported what would take seconds in
# each; a first custom operator imports torch._dynamo.
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", "pipeline.train.session", "tests.faults.harness"]
)


class Lab:
    """A folder with the data, the config and the undisturbed runs that all trials share.

    ``arch``: the network; forked runs know the one of tests/train/tiny.py, too.
    """

    def __init__(self, root: Path, arch: str = "resnet20", epochs: int = EPOCHS) -> None:
        self.root = root
        self.epochs = epochs
        self.data = cifar_tree(root / "data", more_tests=1)
        self.config = root / "tiny.yaml"
        self.config.write_text(CONFIG.replace("ARCH", arch).replace("EPOCHS", str(epochs)))
        self.references: dict[int, Run] = {}

    def reference(self, size: int) -> "Run":
        """A run on ``size`` processes that nothing disturbs."""
        if size not in self.references:
            self.references[size] = Run(self, f"reference{size}", size).fork()
        return self.references[size]


@dataclass
class Run:
    """One training run, in as many lives as it takes. ``meeting``: see ``MEETINGS``."""

    lab: Lab
    name: str
    size: int
    meeting: str = "make"
    overrides: tuple[str, ...] = ()
    module: str = "launch.train"
    restarts: int = 3  # how often torchrun starts the processes again
    patience: int = (
        PATIENCE // 3
    )  # seconds for a process to come, to answer, and to save at a signal
    processes: "list[subprocess.Popen[str]]" = field(default_factory=list, repr=False)

    @property
    def folder(self) -> Path:
        return self.lab.root / "runs" / self.name

    @property
    def log(self) -> Path:
        return self.lab.root / f"{self.name}.txt"

    @property
    def said(self) -> str:
        """All that was printed so far."""
        return self.log.read_text()

    def words(self) -> list[str]:
        """The command line of each of its processes."""
        words = [str(self.lab.config), f"data.path={self.lab.data}", f"run.name={self.name}"]
        words += [f"run.dir={self.lab.root / 'runs'}", f"train.timeout={self.patience}"]
        return [*words, *self.overrides]

    def start(self) -> "Run":
        """Start it, or start it again."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(self.patience)
        if self.meeting == "make":
            environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        nodes = 2 if self.meeting == "two nodes" and self.size > 1 else 1
        command = [sys.executable, *self._torchrun(nodes), "-m", self.module, *self.words()]
        with open(self.log, "a") as log:
            self.processes = [
                subprocess.Popen(command, env=environment, stderr=log, text=True)
                for _ in range(nodes)
            ]
        return self

    def fork(self) -> "Run":
        """Let it run to its end without torchrun, in processes that have imported all they need."""
        fork(_live, self, free_port(), size=self.size)
        return self

    def _torchrun(self, nodes: int) -> list[str]:
        if self.size == 1:
            return []
        options = [*MEETINGS[self.meeting], f"--nproc-per-node={self.size // nodes}"]
        if nodes > 1:
            options.append(f"--rdzv-endpoint=127.0.0.1:{free_port()}")
        return ["-m", "torch.distributed.run", *options, f"--max-restarts={self.restarts}"]

    def workers(self) -> list[int]:
        """The process ids of the ranks, in their order; of those that there are."""
        if self.size == 1:
            return [self.processes[0].pid]
        found = {}
        for child in _children([each.pid for each in self.processes]):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found[int(next(e[5:] for e in lines if e.startswith(b"RANK=")))] = child
        return [found[rank] for rank in sorted(found)]

    def lines(self) -> int:
        """Lines in metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_until(self, ready: Callable[[], Any]) -> bool:
        """Whether ``ready`` became true while the run was going on."""
        deadline = time.monotonic() + PATIENCE
        while self.processes[0].poll() is None:
            if ready():
                return True
            assert time.monotonic() < deadline, f"{self.name} hangs, see {self.log}"
            time.sleep(0.01)
        return False

    def end(self) -> int:
        """Wait for its end; its exit code."""
        try:
            return max((process.wait(PATIENCE) for process in self.processes), key=abs)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} does not end, see {self.log}") from None

    def finish(self, code: int = 0) -> "Run":
        """Wait for its end, which must be with ``code``."""
        found = self.end()
        assert found == code, f"{self.name} ended with {found}:\n{self.said[-3000:]}"
        return self

    def kill(self) -> None:
        """Nothing of it is left: a power cut."""
        for pid in [each.pid for each in self.processes] + self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def records(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in NOT_COMPARED} for line in lines]

    def weights(self) -> dict[str, torch.Tensor]:
        state = load(self.folder / "checkpoints" / f"epoch_{self.lab.epochs:04d}.pt")
        momentum = state["optimizer"]["state"]
        buffers = {f"momentum {i}": each["momentum_buffer"] for i, each in momentum.items()}
        statistics = {
            f"evaluated {name}": each for name, each in (state["reestimated"] or {}).items()
        }
        return {**state["state_dict"], **buffers, **statistics}


def _live(rank: int, run: Run, port: int) -> None:
    """The life of one process of ``run``, which finds the others as if torchrun had started it."""
    from launch import command, train
    from models import register

    register(TINY)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(run.size)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(run.size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    sys.argv[1:] = run.words()
    with open(run.log, "a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    command.command(train.main)


def fork(function: Callable[..., None], *arguments: Any, size: int) -> None:
    """Call ``function(rank, *arguments)`` in ``size`` processes; an error of one is raised."""
    # One that has looked for GPUs, and found some, cannot be forked.
    method = "forkserver" if IS_INTERPRETED else "spawn"
    multiprocessing.start_processes(function, arguments, size, start_method=method)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _children(parents: list[int]) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) in parents:
                yield int(path.parent.name)


def check_same(run: Run, reference: Run, tolerance: float = 0.0) -> None:
    """The same lines in metrics.jsonl, weights, statistics and momentum (which holds all gradients
    so far), to the bit or to the relative ``tolerance``."""
    for ours, theirs in zip(run.records(), reference.records(), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            close = ours[key] == value or abs(ours[key] - value) <= tolerance * max(
                1e-3, abs(value)
            )
            assert close, f"{run.name}: {key} is {ours[key]}, not {value}: {ours}"
    expected = reference.weights()
    largest = {key: value.abs().max().item() for key, value in expected.items()}
    floor = 1e-6 * max(largest.values())  # some gradients are mathematically 0
    for key, value in run.weights().items():
        difference = (value - expected[key]).abs().max().item()
        scale = max(floor, largest[key])
        assert difference <= tolerance * scale, f"{run.name}: {key} differs by {difference}"


@dataclass(frozen=True)
class Fault:
    """``strike`` does it; ``again``: torchrun does not go on, the run has to be started again."""

    strike: Callable[[Run, random.Random], None]
    meaning: str
    again: bool = True


def _kill_rank(run: Run, rng: random.Random) -> None:
    os.kill(rng.choice(run.workers()), signal.SIGKILL)


def _stop_rank(run: Run, rng: random.Random) -> None:
    os.kill(rng.choice(run.workers()), signal.SIGSTOP)


def _signal_rank(run: Run, rng: random.Random) -> None:
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    os.kill(rng.choice(run.workers()), number)


def _signal_torchrun(run: Run, rng: random.Random) -> None:
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    for process in run.processes:
        process.send_signal(number)


def _kill_torchrun(run: Run, rng: random.Random) -> None:
    workers = run.workers()
    for process in run.processes:
        process.kill()
        process.wait()
    deadline = time.monotonic() + PATIENCE  # the others notice, save and end by themselves
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, f"{run.name}: torchrun's processes outlive it"
        time.sleep(0.05)


def _power_cut(run: Run, rng: random.Random) -> None:
    run.kill()


def _cut_while_writing(run: Run, rng: random.Random) -> None:
    folder = run.folder / "checkpoints"
    run.wait_until(lambda: folder.exists() and any(folder.glob(".*.tmp")))
    run.kill()


def _newest_of_two(run: Run) -> Path:
    """The newest checkpoint of a run that has an older one too, and is dead now."""
    store = CheckpointStore(run.folder / "checkpoints", 1)
    run.wait_until(lambda: len(store.files()) > 1)
    run.kill()
    return store.files()[0]


def _cut(run: Run, rng: random.Random) -> None:
    path = _newest_of_two(run)
    os.truncate(path, rng.randrange(path.stat().st_size))


def _flip(run: Run, rng: random.Random) -> None:
    path = _newest_of_two(run)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _full_disk(run: Run, rng: random.Random) -> None:
    """No file may grow beyond a few KiB any more, in the process that writes."""
    resource.prlimit(run.workers()[0], resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


FAULTS = {
    "SIGKILL": Fault(_kill_rank, "to a rank", again=False),
    "SIGSTOP": Fault(_stop_rank, "to a rank: it hangs", again=False),
    "signal": Fault(_signal_rank, "SIGTERM, SIGINT or SIGUSR1 to a rank"),
    "stop": Fault(_signal_torchrun, "SIGTERM or SIGINT to torchrun"),
    "orphans": Fault(_kill_torchrun, "SIGKILL to torchrun alone"),
    "power": Fault(_power_cut, "SIGKILL to everything"),
    "torn": Fault(_cut_while_writing, "SIGKILL to everything while a checkpoint is written"),
    "cut": Fault(_cut, "SIGKILL to everything, and the end of the newest checkpoint missing"),
    "flip": Fault(_flip, "SIGKILL to everything, and a bit of the newest checkpoint flipped"),
    "full": Fault(_full_disk, "no room for a checkpoint", again=False),
    "resize": Fault(_signal_rank, "as signal, and going on with another number of processes"),
}


@dataclass
class Result:
    """How one trial went."""

    seed: int
    size: int
    meeting: str
    faults: list[str]  # those that struck
    error: str = ""


def trial(
    lab: Lab,
    seed: int,
    faults: list[str] | None = None,
    name: str | None = None,
    earliest: int = 1,
) -> Result:
    """Break a run as ``seed`` says, or by the given ``faults`` one after the other, each after the
    run has recovered from the one before, and compare it in the end.

    ``earliest``: the first line of metrics.jsonl after which it may be broken.
    """
    rng = random.Random(seed)
    size = rng.choice([2, 2, 4])
    run = Run(lab, name or f"trial{seed}", size, rng.choice(list(MEETINGS)))
    chosen = faults or rng.choices(list(FAULTS), k=rng.choice([1, 2]))
    result = Result(seed, size, run.meeting, [])
    run.patience = HUNG if "SIGSTOP" in chosen else run.patience
    run.start()
    span = (LINES * lab.epochs - 6 - earliest) // len(chosen)  # few seconds are left in the last 6
    for number, name in enumerate(chosen):
        line = earliest + number * span + rng.randrange(span)
        if not _reach(run, line, recoveries=number):
            break  # it was over before
        time.sleep(rng.uniform(0, 0.5))
        _strike(run, name, rng)
        result.faults.append(name)
    try:
        run.finish()
        check_same(run, lab.reference(size), 0.0 if run.size == size else 1e-9)
    except AssertionError as error:
        result.error = str(error)
    return result


def _reach(run: Run, line: int, recoveries: int) -> bool:
    """Wait until the run has gone on so often, for that line in metrics.jsonl and for all workers;
    whether that came."""
    return run.wait_until(
        lambda: (
            run.said.count("going on after") >= recoveries
            and run.lines() >= line
            and len(run.workers()) == run.size
        )
    )


def _strike(run: Run, name: str, rng: random.Random) -> None:
    fault = FAULTS[name]
    fault.strike(run, rng)
    if fault.again:
        run.end()
        if name == "resize":
            run.size = rng.choice([n for n in (1, 2, 4) if n != run.size])
        run.start()


def table(results: list[Result]) -> str:
    """Faults tried and survived, as Markdown."""
    rows = ["| fault | what it is | tried | survived |", "|---|---|---|---|"]
    for name, fault in FAULTS.items():
        tried = [each for each in results for hit in each.faults if hit == name]
        survived = sum(not each.error for each in tried)
        rows.append(f"| {name} | {fault.meaning} | {len(tried)} | {survived} |")
    return "\n".join(rows)
