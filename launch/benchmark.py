"""Measure training steps and loaders side by side:
``python -m launch.benchmark {train,loader} [--device D] [--data PATH] ...``.

Training steps take turns, so that a change of the machine's load meets all providers; loaders run
one after the other, because both read ahead. Prints a table and appends to
docs/results/<bench>_<device>.csv.
"""

import argparse
import csv
import datetime
import itertools
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels._triton import HAS_TRITON, triton
from launch.command import command, get_device
from models import build_model
from models.official import build_official, set_official_o
from pipeline.config import Config, make_config
from pipeline.data import folder_loader
from pipeline.errors import UserError
from pipeline.imagefolder import scan
from pipeline.trainer import autocast, make_optimizer, prepare

RESULTS = Path("docs/results")
COLUMNS = (
    *("date", "commit", "gpu", "torch", "triton", "bench", "case", "provider"),
    *("mode", "metric", "unit", "p20", "p50", "p80"),
)
Row = dict[str, object]


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="launch.benchmark")
    parser.add_argument("bench", choices=["train", "loader"])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--data", type=Path, help="loader: a tree with train/ of class folders")
    parser.add_argument("--arch", default="resnet20", help="train: the network")
    parser.add_argument("--batch", type=int, default=256, help="images in a step")
    parser.add_argument("--size", type=int, help="side of the images, by default the network's")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each provider")
    parser.add_argument("--workers", type=int, default=1, help="loader: threads or processes")
    options = parser.parse_args(arguments)
    config = make_config({"train": {"device": options.device}}, name="benchmark")
    device = get_device(config)
    rows = train(options, device) if options.bench == "train" else loader(options, device)
    write(options.bench, rows, device)


def train(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Whole training steps on one fixed batch: ours, and the official formulation in fp32 NCHW."""
    config = make_config({"train": {"precision": options.precision}}, name="x")
    imagenet = options.arch in ("resnet18", "resnet34")
    classes, size = (1000, 224) if imagenet else (10, 32)
    size = options.size or size
    images = torch.randn(options.batch, 3, size, size, device=device)
    labels = torch.randint(classes, (options.batch,), device=device)
    official = build_official(options.arch, num_classes=classes).to(device)
    set_official_o(official, torch.tensor(2.0))
    ours = prepare(build_model(options.arch, num_classes=classes), config, device)
    ours.set_progress(2 / 3)  # o = 2
    steps = {
        "official": _step(official, images, labels, make_config({}, name="x"), device, "torch"),
        "ours": _step(
            ours,
            images.to(memory_format=torch.channels_last),
            labels,
            config,
            device,
            "torch_fused",
        ),
    }
    times = _take_turns(steps, options.rounds, device)
    case = f"{options.arch}/{options.batch}x3x{size}x{size}/{options.precision}"
    return [_row(case, p, "step", options.batch, t) for p, t in times.items()]


def _step(
    model: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    config: Config,
    device: torch.device,
    impl: str,
) -> Callable[[], None]:
    optimizer = make_optimizer(make_config({"optim": {"impl": impl}}, name="x"), model)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(config, device):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _take_turns(
    providers: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, after two that are not timed."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn, (name, call) in itertools.product(range(-2, rounds), providers.items()):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 0:
            times[name].append(time.perf_counter() - began)
    return times


def loader(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Training batches of a JPEG tree at 224 pixels, through DALI and through torchvision."""
    if options.data is None:
        raise UserError("--data is not set: give a tree with train/ of class folders (make DATA=)")
    folder = scan(options.data, "train")
    streams: dict[str, list[float]] = {}
    for provider, choice in (("torchvision", "torchvision"), ("ours", "dali")):
        make = folder_loader(make_config({"data": {"loader": choice}}, name="x"))
        batches = make(
            folder,
            batch_size=options.batch,
            train=True,
            size=options.size or 224,
            resize=256,
            min_area=0.08,
            augment=True,
            seed=0,
            workers=options.workers,
            dtype=torch.float32,
            device=device,
        )
        endless = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
        turns = _take_turns({provider: lambda e=endless: next(e)}, options.rounds, device)  # type: ignore[misc]
        streams |= turns
        del batches, endless
    case = f"{options.data.name}/{options.batch}/workers{options.workers}"
    return [_row(case, p, "loader", options.batch, t) for p, t in streams.items()]


def _row(case: str, provider: str, mode: str, images: int, seconds: list[float]) -> Row:
    rates = images / torch.tensor(seconds, dtype=torch.float64)
    quantiles = rates.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {
        "case": case,
        "provider": provider,
        "mode": mode,
        "metric": "throughput",
        "unit": "images/s",
        **dict(zip(("p20", "p50", "p80"), (f"{q:.1f}" for q in quantiles), strict=True)),
    }


def write(bench: str, rows: list[Row], device: torch.device) -> None:
    """Print ``rows`` and append them to the device's CSV."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    common: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "gpu": name,
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else "",
        "bench": bench,
    }
    path = RESULTS / f"{bench}_{name.replace(' ', '-')}.csv"
    RESULTS.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
    for row in rows:
        print("  ".join(f"{row[k]}" for k in ("case", "provider", "unit", "p20", "p50", "p80")))


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    command(main)
