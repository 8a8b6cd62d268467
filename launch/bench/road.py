"""The whole road, measured: from image files to trained networks.

The images that are given become trees of the size that is needed (launch/bench/trees.py): raw, of
links to them; resized to data.resize pixels; sharded, of the resized ones. Their files are in the
system's cache, so what is measured is decoding and not the disk.

loader: training batches alone. end_to_end: training images a second over whole epochs with their
batches from a tree, without evaluation, for ours with log lines and checkpoints; data_wait, the
share of that time in which the step waited for a batch; and what an epoch and all epochs of
ImageNet's images would take at that rate, whose rows say ``extrapolated``. ours and compile
(launch/bench/rivals.py) read through our loader, official through torchvision's ImageFolder and
DataLoader, which read no shards. With distill.teacher, ours comes twice: see
launch/bench/training.py.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from launch.bench import loaders, training
from launch.bench.official import build_official
from launch.bench.results import Row, row
from launch.bench.rivals import Compiled, Official, PlainConv2d, read
from launch.bench.trees import given_images, raw_tree, smaller_trees
from pipeline.data.draws import MEAN, STD
from pipeline.data.loader import Batch
from pipeline.data.open import build_loaders
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.recorder import JsonLines

BATCHES = {"cuda": 40, "cpu": 2}  # of an epoch, by default
IMAGENET_IMAGES = 1_281_167  # of its training split
EPOCHS = 2  # timed, after one that is not


class Pass(NamedTuple):
    """One epoch: training images a second, and the share of its time spent waiting for batches."""

    rate: float
    waited: float


Maker = Callable[[Config, torch.device, Path, Path], Callable[[], Pass]]


def measure(
    config: Config,
    device: torch.device,
    rounds: int,
    images: int | None,
    start: Callable[[Path], list[Row]],
) -> list[Row]:
    """All rows of the road of ``config`` from the images at data.path; ``start`` gives those of
    real runs on the raw tree, which come first."""
    given = given_images(config.data.path)
    count = images or config.data.batch_size * BATCHES[device.type]
    with tempfile.TemporaryDirectory() as folder:
        raw = raw_tree(Path(folder), given, max(count, config.data.batch_size))
        rows = start(raw)
        trees = smaller_trees(raw, config.data.resize, max(1, config.data.workers))
        for tree in trees.values():
            here = config.changed({"data.path": str(tree), "data.exclude": None})
            rows.append(loaders.throughput(here, device, rounds))
            rows += end_to_end(here, device, tree)
    return rows


def end_to_end(config: Config, device: torch.device, tree: Path) -> list[Row]:
    """The rows of all who train from ``tree``."""
    rows: list[Row] = []
    for name, own, make in training.providers(config, MAKERS):
        if name == "official" and tree.name == "sharded":
            continue
        epoch = None  # with all that it holds
        before = training.reset_peak(device)
        with tempfile.TemporaryDirectory() as folder:
            try:
                epoch = make(own, device, tree, Path(folder))
                passes = [epoch() for _ in range(1 + EPOCHS)][1:]
            except Exception as error:  # torch.compile fails in many ways
                if name != "compile":
                    raise
                logger.warning("compile is not measured: %s", first_line(error))
                continue
        place = training.place_of(config, name, device, "end_to_end", f"/{tree.name}")
        rows += _rows(config, device, place, passes) + training.peak(device, before, place)
    return rows


def _rows(
    config: Config, device: torch.device, place: tuple[str, str, str], passes: list[Pass]
) -> list[Row]:
    rate, waited = torch.tensor(passes, dtype=torch.float64).T
    epoch = IMAGENET_IMAGES / rate
    rows = [
        row(*place, "throughput", "images/s", rate),
        row(*place, "data_wait", "1", waited),
        row(*place, "epoch_extrapolated", "s", epoch),
        row(*place, "time_to_train_extrapolated", "s", config.train.epochs * epoch),
    ]
    if place[1] == "ours":
        rows += training.share_of_roofline(config, device, place, rate)
    return rows


def _official(config: Config, device: torch.device, tree: Path, _: Path) -> Callable[[], Pass]:
    transform = transforms.Compose([
        transforms.RandomResizedCrop(config.data.size), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    loader = DataLoader(
        datasets.ImageFolder(tree / "train", transform), config.data.batch_size, shuffle=True,
        num_workers=config.data.workers, pin_memory=device.type == "cuda", drop_last=True,
    )  # fmt: skip
    rival = Official(build_official(*config.network), device)

    def step(batch: Batch) -> None:
        read(*rival.step(batch), batch.labels)

    def batches() -> Iterator[Batch]:
        for images, labels in loader:
            yield Batch(images.to(device), labels.to(device))

    return lambda: _pass(batches(), step, device)


def _compile(config: Config, device: torch.device, tree: Path, _: Path) -> Callable[[], Pass]:
    dtype = training.rival_dtype(config, device)
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    train, _val = build_loaders(config.changed({"train.precision": half}), device)
    rival = Compiled(build_official(*config.network, PlainConv2d), device, dtype)
    numbers = iter(range(10**9))
    return lambda: _pass(train.epoch(next(numbers)), rival.step, device)


def _pass(batches: Iterable[Batch], step: Callable[[Batch], object], device: torch.device) -> Pass:
    """Train on all ``batches``."""
    images, waited = 0, 0.0
    stream, began = iter(batches), time.perf_counter()
    while True:
        mark = time.perf_counter()
        batch = next(stream, None)
        waited += time.perf_counter() - mark
        if batch is None:
            break
        step(batch)
        images += len(batch.labels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Pass(images / seconds, waited / seconds)


def _ours(config: Config, device: torch.device, tree: Path, folder: Path) -> Callable[[], Pass]:
    trainer = training.make_trainer(config, device, build_loaders(config, device), folder)
    records = folder / "metrics.jsonl"
    trainer.recorder.lines = JsonLines(records)

    def epoch() -> Pass:
        trainer.run_epoch()
        record = json.loads(records.read_text(encoding="utf-8").splitlines()[-1])
        return Pass(record["images_per_second"], record["data_wait"])

    return epoch


MAKERS: dict[str, Maker] = {"official": _official, "compile": _compile, "ours": _ours}
