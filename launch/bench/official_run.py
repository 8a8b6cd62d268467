"""A training by the official code itself, as a run that ``compare`` shows beside ours.

Its main.py runs as it is, with the flags that say what a config says. Three things are other:
torchvision's CIFAR-10 has the images at ``data.path``, on a CPU ``.cuda()`` gives back what it is
called on, and torch has a seed. What is logged after an epoch becomes a record.
"""

import contextlib
import logging
import re
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from launch.bench.rivals import PilImages
from pipeline.data.cifar_files import CifarSplit, load_cifar
from pipeline.report.plots import draw_run
from pipeline.run.config import Config
from pipeline.run.console import logger, start_console
from pipeline.run.device import get_device
from pipeline.run.errors import UserError
from pipeline.run.files import free_name
from pipeline.run.folder import open_folder
from pipeline.run.recorder import Recorder
from pipeline.run.resume import is_run
from pipeline.run.threads import settle_threads

WARM_UP = 5  # epochs of its --warm_up
NUMBER = r"([-+.\w]+)"
SHOWN = {
    "train_loss": "Training loss",
    "train_top1": "Training Prec@1",
    "train_top5": "Training Prec@5",
    "val_loss": "Validation loss",
    "val_top1": "Validation Prec@1",
    "val_top5": "Validation Prec@5",
}
EPOCH = re.compile(r"\s+".join(f"{words} {NUMBER}" for words in ("Epoch:", *SHOWN.values())))
STEP = re.compile(rf"TRAINING - Epoch.*?Time {NUMBER} \({NUMBER}\)")
RATE = re.compile(rf"lr: {NUMBER}")


def flags(config: Config) -> list[str]:
    """The flags of the official main.py that say what ``config`` says; raises UserError for what
    they cannot say."""
    model, data, optim = config.model, config.data, config.optim
    for key, value, known in (
        ("data.dataset", data.dataset, ("cifar10",)),
        ("model.bits", model.bits, ("1w1a", "1w32a")),
        ("estimator.name", config.estimator.name, ("reste",)),
        ("optim.warmup_epochs", optim.warmup_epochs, (0, WARM_UP)),
        ("train.precision", config.train.precision, ("auto", "fp32")),
    ):
        if value not in known:
            raise UserError(f"{key}={value} is not for the official code; set it to {known[-1]}")
    values = {
        "model": f"{model.arch.removesuffix('_cifar')}_1w1a",
        "dataset": data.dataset,
        "epochs": config.train.epochs,
        "lr": optim.lr,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
        "batch_size": data.batch_size,
        "batch_size_test": data.eval_batch_size,
        "workers": data.workers,
        "seed": config.seed,
        "o_end": config.estimator_options["o_end"],
        "print_freq": config.log.every,
        "results_dir": config.run_folder,
        "save": "official",
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    words += ["--warm_up"] if optim.warmup_epochs else []
    return words + (["--a32"] if model.bits == "1w32a" else [])


def train(config: Config, checkout: Path) -> Path:
    """Train what ``config`` says by the code in ``checkout``; returns the folder of the run.

    It takes over the process, once. Raises UserError where there is no such code, a run in the
    folder, or something in the config that the code does not know.
    """
    words = flags(config)
    if not (checkout / "main.py").exists():
        raise UserError(f"--official {checkout}: there is no main.py; name the official checkout")
    if is_run(config.run_folder):
        name = free_name(config.run_folder)
        raise UserError(f"{config.run_folder} holds a run already; set run.name={name}")
    start_console()
    config = settle_threads(config)
    data = config.data
    path = None if data.path is None else Path(data.path)
    splits = [
        load_cifar(data.dataset, path, split=split, download=data.download)
        for split in ("train", "test")
    ]
    recorder = Recorder()
    open_folder(config, recorder, None)
    records = Records(recorder, config, len(splits[0].labels))
    logging.getLogger().addHandler(records)  # with which logging.basicConfig does nothing any more
    logging.getLogger().setLevel(logging.INFO)
    torch.manual_seed(config.seed)
    try:
        with _in_place(checkout, words, splits, get_device(config)):
            runpy.run_path(str(checkout / "main.py"), run_name="__main__")
    finally:
        logging.getLogger().removeHandler(records)
        recorder.close()
    draw_run(config.run_folder)
    logger.info("the run lies in %s", config.run_folder)
    return config.run_folder


@contextlib.contextmanager
def _in_place(
    checkout: Path, words: Sequence[str], splits: Sequence[CifarSplit], device: torch.device
) -> Iterator[None]:
    """The command line of main.py, and what is put in the place of its images and of its card."""
    import torchvision

    def images(*, train: bool, transform: Any, **_: Any) -> PilImages:
        return PilImages(splits[0 if train else 1], transform)

    def itself(self: Any, *_: Any, **__: Any) -> Any:
        return self

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["main.py", *words]))
        stack.enter_context(patch.object(sys, "path", [str(checkout), *sys.path]))
        stack.enter_context(patch.object(torchvision.datasets, "CIFAR10", images))
        if device.type == "cpu":
            for owner in (torch.Tensor, torch.nn.Module):
                stack.enter_context(patch.object(owner, "cuda", itself))
        yield


class Records(logging.Handler):
    """Makes a record of what is logged after each epoch."""

    def __init__(self, recorder: Recorder, config: Config, images: int) -> None:
        super().__init__()
        self.recorder, self.batch_size = recorder, config.data.batch_size
        self.steps = -(-images // self.batch_size)
        self.rate, self.step_seconds, self.began = 0.0, 0.0, time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the official log."""
        text = record.getMessage()
        if found := RATE.match(text):
            self.rate = float(found[1])
        elif found := STEP.match(text):
            self.step_seconds = float(found[2])
        elif found := EPOCH.search(text):
            self._write(int(found[1]), [float(each) for each in found.groups()[1:]])

    def _write(self, done: int, values: Sequence[float]) -> None:
        now = time.perf_counter()
        record = {
            "kind": "epoch",
            "epoch": done - 1,
            "lr": self.rate,
            **dict(zip(SHOWN, values, strict=True)),
            "images_per_second": self.batch_size / max(self.step_seconds, 1e-9),
            "seconds": now - self.began,
        }
        self.began = now
        self.recorder.write(record, done * self.steps)
