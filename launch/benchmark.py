"""Measure kernels, training and loading side by side:
``python -m launch.benchmark {kernels,train,loader} CONFIG [key=value ...]``.

kernels: see launch/bench/kernels.py; of the config only ``train.device`` and ``train.precision``
(fp32 is taken for fp16 on a GPU) matter. Also draws docs/results/kernels_<device>.png.
train: see launch/bench/training.py; also draws docs/results/train_<config>_<device>.png. Where
``data.path`` is set, also the start of a real run: seconds to its first step, and the memory that
it takes.
loader: training batches of the image tree ``data.path``, through torchvision and through DALI.

Loaders run one after the other, because both read ahead. Prints a table and appends it to
docs/results/<bench>_<device>.csv.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kernels import compiled_reference
from launch.bench import kernels as micro
from launch.bench import results, training
from launch.bench.results import Row, device_name, new_figure, results_file, row, take_turns, write
from launch.bench.starts import starts
from launch.command import command, get_device
from models import build_model
from pipeline.data.loader import Loader
from pipeline.data.open import open_folder
from pipeline.data.tree import scan
from pipeline.run.config import Config, load_config
from pipeline.run.errors import UserError
from pipeline.train.precision import AUTOCAST

WINDOW = 10  # batches of a loader that are timed together: read-ahead makes single ones meaningless


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="launch.benchmark")
    parser.add_argument("bench", choices=["kernels", "train", "loader"])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each provider")
    parser.add_argument("--batch", type=int, help="kernels: images, by default as many as trained")
    parser.add_argument("--images", type=int, help="train: images of an epoch, by default all")
    parser.add_argument("--official", type=Path, help="train: a checkout of the official code")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    device = get_device(config)
    if options.bench == "kernels":
        with compiled_reference(device.type == "cpu"):  # as in a training
            rows = kernels(config, device, options.batch)
    elif options.bench == "loader":
        rows = loaders(config, device, options.rounds)
    else:
        rows = []
        if config.data.path is not None:  # first: a child's peak is at least this process's so far
            rows += starts(options.config, options.overrides, config)
        rows += training.measure(config, device, options.rounds, options.official, options.images)
    write(options.bench, rows, device)


NETWORKS = {"resnet18": (256, 224), "resnet20": (256, 32), "vgg_small": (256, 32)}
CPU_BATCH = 16


def kernels(config: Config, device: torch.device, batch: int | None = None) -> list[Row]:
    """Microseconds of ops, blocks and convolutions, and their share of the bandwidth of a copy."""
    if device.type == "cpu" and config.train.device != "cpu":
        raise UserError("there is no CUDA device; make bench-kernels DEVICE=cpu times the CPU path")
    dtype = torch.float32 if device.type == "cpu" else AUTOCAST.get(config.train.precision)
    dtype = dtype or torch.float16
    torch.backends.cudnn.benchmark = True
    cases, ops = [], micro.convolution_ops(device)
    for arch, (images, size) in NETWORKS.items():
        images = batch or (CPU_BATCH if device.type == "cpu" else images)
        cases += micro.layers(arch, model := build_model(arch), images, size)
        cases += micro.convolutions(arch, model, images, size, ops)
    peak = micro.copy_bandwidth(device)
    print(f"{peak / 1e9:.0f} GB/s copied; each case in {dtype}, official in fp32")
    rows, shares = [], {}
    for each in micro.measure(cases, device, dtype, micro.PROVIDERS):
        if each.seconds is None:
            print(f"{each.case.name:52} {each.provider:9} {each.mode:9} wrong: not timed")
            continue
        seconds = torch.tensor(each.seconds, dtype=torch.float64)
        share = each.bytes / seconds / peak
        name = each.case.name, each.provider, each.mode
        rows.append(row(*name, "time", "us", seconds * 1e6))
        rows.append(row(*name, "bandwidth_share", "1", share))
        shares[name] = share.median().item()
        print(f"{name[0]:52} {name[1]:9} {name[2]:9} {rows[-2]['p50']:>10} us {shares[name]:.3f}")
    _plot_kernels(shares, peak, device)
    _print_convolutions(rows)
    return rows


def _print_convolutions(rows: list[Row]) -> None:
    """Which convolution is the fastest, layer by layer, beside cuDNN's in NHWC."""
    layers: dict[str, dict[str, float]] = {}
    for each in rows:
        op, _, layer = str(each["case"]).partition("/")
        if op.startswith("conv") and each["metric"] == "time":
            layers.setdefault(layer, {})[op] = float(str(each["p50"]))
    for layer, times in layers.items():
        best = min(times, key=times.__getitem__)
        cudnn = times.get("conv", float("nan"))
        print(f"{layer:44} {best:13} {times[best]:.1f} us; conv {cudnn:.1f} us")


def _plot_kernels(
    shares: dict[tuple[str, str, str], float], peak: float, device: torch.device
) -> None:
    """GB/s of every block, forward and backward, a bar per provider."""
    cases = list(dict.fromkeys(case for case, _, _ in shares if case.startswith("block/")))
    if (figure := new_figure(9, 1.5 + 0.55 * len(cases))) is None:
        return
    axes = figure.subplots()
    for i, provider in enumerate(micro.PROVIDERS):
        speeds = [shares.get((case, provider, "both"), 0) * peak / 1e9 for case in cases]
        places = [place + 0.2 * i for place in range(len(cases))]
        axes.barh(places, speeds, height=0.2, label=provider)
    axes.axvline(peak / 1e9, color="black", linestyle=":", label="copy")
    axes.set_yticks([place + 0.3 for place in range(len(cases))], [c[6:] for c in cases])
    axes.invert_yaxis()
    axes.set_xlabel("GB/s of the bytes that must move, forward and backward")
    axes.set_title(f"Between two convolutions, {device_name(device)}")
    axes.legend(loc="lower right")
    results.RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(results_file("kernels", device).with_suffix(".png"), dpi=120)


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
        rows.append(row(case, provider, "loader", "throughput", "images/s", rate))
    return rows


def _windows(loader: Loader, rounds: int, device: torch.device) -> Tensor:
    stream = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    window = {"loader": lambda: [next(stream) for _ in range(WINDOW)]}
    return take_turns(window, rounds, device)["loader"]


if __name__ == "__main__":
    command(main)
