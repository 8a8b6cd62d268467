"""Measure kernels, training and loading side by side:
``python -m launch.benchmark {kernels,train,loader} CONFIG [key=value ...]``.

kernels: see kernels/benchmark.py; of the config only ``train.device`` and ``train.precision``
(fp32 is taken for fp16 on a GPU) matter. Also draws docs/results/kernels_<device>.png.
train: whole training steps on one fixed batch, by the official formulation (fp32, NCHW), by us,
and with ``--official CHECKOUT`` by the official code itself; where ``data.path`` is set, also the
start of a real run: seconds to its first step, and the memory that it takes.
loader: training batches of the image tree ``data.path``, through torchvision and through DALI.

Training steps take turns, so that a change of the machine's load meets all providers; loaders run
one after the other, because both read ahead. Prints a table and appends it to
docs/results/<bench>_<device>.csv.
"""

import argparse
import csv
import dataclasses
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kernels import benchmark as micro
from kernels._triton import HAS_TRITON, triton
from launch.command import command, get_device
from models import IMAGENET_ARCHS, build_model
from models.official import build_official, load_official, set_official_o
from pipeline.checkpoint import CheckpointStore
from pipeline.config import Config, load_config
from pipeline.data import Batch, Loader, image_dtype, open_folder
from pipeline.errors import UserError
from pipeline.imagefolder import scan
from pipeline.log import logger
from pipeline.trainer import AUTOCAST, StopSignal, Trainer

RESULTS = Path("docs/results")
COLUMNS = (
    *("date", "commit", "gpu", "torch", "triton", "bench", "case", "provider"),
    *("mode", "metric", "unit", "p20", "p50", "p80"),
)
WINDOW = 10  # batches of a loader that are timed together: read-ahead makes single ones meaningless
START_STEPS = 30  # steps of a real run before it is stopped
Row = dict[str, object]


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="launch.benchmark")
    parser.add_argument("bench", choices=["kernels", "train", "loader"])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each provider")
    parser.add_argument("--batch", type=int, help="kernels: images, by default as many as trained")
    parser.add_argument("--official", type=Path, help="train: a checkout of the official code")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    device = get_device(config)
    if options.bench == "kernels":
        rows = kernels(config, device, options.batch)
    elif options.bench == "loader":
        rows = loaders(config, device, options.rounds)
    else:
        rows = steps(config, device, options.rounds, options.official)
        if config.data.path is not None:
            rows += starts(options.config, options.overrides, config)
    write(options.bench, rows, device)


NETWORKS = {"resnet18": (256, 224), "resnet20": (256, 32), "vgg_small": (256, 32)}
CPU_BATCH = 16


def kernels(config: Config, device: torch.device, batch: int | None = None) -> list[Row]:
    """Microseconds of ops and blocks, and their share of the bandwidth of a copy."""
    if device.type == "cpu" and config.train.device != "cpu":
        raise UserError("there is no CUDA device; make bench-kernels DEVICE=cpu times the CPU path")
    dtype = torch.float32 if device.type == "cpu" else AUTOCAST.get(config.train.precision)
    dtype = dtype or torch.float16
    cases = []
    for arch, (images, size) in NETWORKS.items():
        images = batch or (CPU_BATCH if device.type == "cpu" else images)
        cases += micro.layers(arch, build_model(arch), images, size)
    peak = micro.copy_bandwidth(device)
    print(f"{peak / 1e9:.0f} GB/s copied; each case in {dtype}, official in fp32")
    rows, shares = [], {}
    for each in micro.measure(cases, device, dtype, micro.PROVIDERS):
        if each.seconds is None:
            print(f"{each.case.name:44} {each.provider:9} {each.mode:9} wrong: not timed")
            continue
        seconds = torch.tensor(each.seconds, dtype=torch.float64)
        share = each.bytes / seconds / peak
        name = each.case.name, each.provider, each.mode
        rows.append(_row(*name, "time", "us", seconds * 1e6))
        rows.append(_row(*name, "bandwidth_share", "1", share))
        shares[name] = share.median().item()
        print(f"{name[0]:44} {name[1]:9} {name[2]:9} {rows[-2]['p50']:>10} us {shares[name]:.3f}")
    _plot_kernels(shares, peak, device)
    return rows


def _plot_kernels(
    shares: dict[tuple[str, str, str], float], peak: float, device: torch.device
) -> None:
    """GB/s of every block, forward and backward, a bar per provider."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is not installed")
        return
    cases = list(dict.fromkeys(case for case, _, _ in shares if case.startswith("block/")))
    figure = Figure(figsize=(9, 1.5 + 0.55 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for i, provider in enumerate(micro.PROVIDERS):
        speeds = [shares.get((case, provider, "both"), 0) * peak / 1e9 for case in cases]
        places = [place + 0.2 * i for place in range(len(cases))]
        axes.barh(places, speeds, height=0.2, label=provider)
    axes.axvline(peak / 1e9, color="black", linestyle=":", label="copy")
    axes.set_yticks([place + 0.3 for place in range(len(cases))], [c[6:] for c in cases])
    axes.invert_yaxis()
    axes.set_xlabel("GB/s of the bytes that must move, forward and backward")
    axes.set_title(f"Between two convolutions, {_device_name(device)}")
    axes.legend(loc="lower right")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(_results_file("kernels", device).with_suffix(".png"), dpi=120)


class FixedBatch:
    """A ``Loader`` of one batch of noise, which lies on the device all the time."""

    classes: tuple[str, ...] = ()
    fingerprint = ""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.images, classes = config.data.batch_size, config.model.num_classes
        size = config.data.size if config.model.arch in IMAGENET_ARCHS else 32
        images = torch.randn(self.images, 3, size, size, dtype=image_dtype(config, device))
        labels = torch.randint(classes, (self.images,))
        layout = torch.channels_last
        self.batch = Batch(images.to(device, memory_format=layout), labels.to(device))

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch."""
        yield self.batch


def steps(
    config: Config, device: torch.device, rounds: int, checkout: Path | None = None
) -> list[Row]:
    """images/s of whole training steps."""
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    loader = FixedBatch(config, device)
    arguments = config.model.arch, config.model.bits, config.model.num_classes
    store = CheckpointStore(config.run_folder, 1)  # stays empty
    run = Trainer(config, build_model(*arguments), (loader, loader), device, store, StopSignal())
    run.model.set_progress(2 / 3)  # o = 2
    run.model.train()
    noise = loader.batch._replace(images=loader.batch.images.float().contiguous())
    providers = {"official": official_step(build_official(*arguments), noise)}
    if checkout:
        providers["official_code"] = official_step(load_official(checkout, *arguments), noise)
    providers["ours"] = lambda: run.train_step(loader.batch)
    times = take_turns(providers, rounds, device)
    batch, precision = config.data.batch_size, config.train.precision
    case = f"{config.run.name}/{config.model.bits}/{batch}/{precision}"
    return [
        _row(case, provider, "step", "throughput", "images/s", batch / seconds)
        for provider, seconds in times.items()
    ]


def official_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """A training step as the official code takes it: fp32, its SGD, and o read in every step."""
    model.to(batch.images.device)
    set_official_o(model, torch.tensor(2.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def take_turns(
    providers: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Tensor]:
    """Seconds of each call, after two that are not timed."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn, (name, call) in itertools.product(range(-2, rounds), providers.items()):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 0:
            times[name].append(time.perf_counter() - began)
    return {name: torch.tensor(seconds, dtype=torch.float64) for name, seconds in times.items()}


def starts(path: str, overrides: Sequence[str], config: Config, times: int = 3) -> list[Row]:
    """Seconds from the command line to the first step of a real run, and the peak of its
    process's memory in its first steps."""
    results = torch.tensor([_start(path, overrides) for _ in range(times)], dtype=torch.float64)
    case = f"{config.run.name}/{config.data.batch_size}/{config.train.precision}"
    return [
        _row(case, "ours", "end_to_end", "time_to_first_step", "s", results[:, 0]),
        _row(case, "ours", "end_to_end", "memory", "MiB", results[:, 1]),
    ]


def _start(path: str, overrides: Sequence[str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        ours = [f"run.dir={folder}", "run.name=start", "log.every=1"]
        began = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, "-m", "launch.train", path, *overrides, *ours],
            stderr=subprocess.DEVNULL,
        )
        metrics = Path(folder) / "start" / "metrics.jsonl"
        first, stopped, pid = 0.0, False, 0
        while not pid:
            pid, status, usage = os.wait4(run.pid, os.WNOHANG)
            done = _steps_done(metrics)
            if done and not first:
                first = time.perf_counter() - began
            if done >= START_STEPS and not stopped:
                os.kill(run.pid, signal.SIGINT)
                stopped = True
            time.sleep(0.05)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode != 128 + signal.SIGINT:
        raise UserError(f"the run with {path} ended with {run.returncode}; start it by itself")
    return first, usage.ru_maxrss / 1024


def _steps_done(metrics: Path) -> int:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return sum(json.loads(line)["kind"] == "step" for line in lines)


def loaders(config: Config, device: torch.device, rounds: int) -> list[Row]:
    """images/s of training batches."""
    if config.data.path is None:
        raise UserError("data.path is not set: give a tree with train/ of class folders (DATA=)")
    folder = scan(Path(config.data.path), "train", config.data.exclude)
    batch, workers = config.data.batch_size, config.data.workers
    case = f"{folder.root.name}/{batch}x3x{config.data.size}x{config.data.size}/workers{workers}"
    rows = []
    choices: dict[str, Literal["torchvision", "dali"]]
    choices = {"torchvision": "torchvision", "ours": "dali"}
    for provider, choice in choices.items():
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, loader=choice))
        seconds = _windows(open_folder(folder, changed, device, train=True), rounds, device)
        rate = WINDOW * batch / seconds
        rows.append(_row(case, provider, "loader", "throughput", "images/s", rate))
    return rows


def _windows(loader: Loader, rounds: int, device: torch.device) -> Tensor:
    stream = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    window = {"loader": lambda: [next(stream) for _ in range(WINDOW)]}
    return take_turns(window, rounds, device)["loader"]


def _row(case: str, provider: str, mode: str, metric: str, unit: str, values: Tensor) -> Row:
    p20, p50, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    digits = ".4f" if unit == "1" else ".1f"
    row = (case, provider, mode, metric, unit, *(format(p, digits) for p in (p20, p50, p80)))
    return dict(zip(COLUMNS[6:], row, strict=True))


def write(bench: str, rows: list[Row], device: torch.device) -> None:
    """Print ``rows`` and append them to the device's CSV."""
    common: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "gpu": _device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else "",
        "bench": bench,
    }
    path = _results_file(bench, device)
    RESULTS.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
    if bench == "kernels":
        return  # was printed while it ran
    print("case  provider  metric  unit  p20  p50  p80")
    for row in rows:
        print("  ".join(f"{row[k]}" for k in ("case", "provider", *COLUMNS[-5:])))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _results_file(bench: str, device: torch.device) -> Path:
    return RESULTS / f"{bench}_{_device_name(device).replace(' ', '-')}.csv"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    command(main)
