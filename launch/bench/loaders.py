"""How fast torchvision and DALI load training batches.

They run one after the other, because both read ahead.
"""

import itertools
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from launch.bench.results import Row, row
from launch.bench.timing import take_turns
from pipeline.data.loader import Loader
from pipeline.data.open import open_folder, scan_of
from pipeline.data.tree import ImageFolder
from pipeline.run.config import Config
from pipeline.run.errors import UserError

WINDOW = 10  # batches that are timed together: read-ahead makes single ones meaningless


def measure(config: Config, device: torch.device, rounds: int) -> list[Row]:
    """images/s of training batches of the image tree ``data.path``."""
    return [
        throughput(config.changed({"data.loader": loader}), device, rounds)
        for loader in ("torchvision", "dali")
    ]


def throughput(config: Config, device: torch.device, rounds: int, suffix: str = "") -> Row:
    """images/s of the loader of ``config``, whose case ends with ``suffix``.

    Raises UserError where ``data.path`` is not set or holds no images.
    """
    folder = _training_images(config.data.path, config.data.exclude, config.data.format)
    batch, workers = config.data.batch_size, config.data.workers
    case = f"{folder.root.name}/{batch}x3x{config.data.size}x{config.data.size}/workers{workers}"
    opened = open_folder(folder, config, device, train=True)
    rate = WINDOW * (opened.images // len(opened)) / _windows(opened, rounds, device)
    provider = "torchvision" if config.data.loader == "torchvision" else "ours"
    return row(case + suffix, provider, "loader", "throughput", "images/s", rate)


@cache
def _training_images(path: str | None, exclude: str | None, form: str) -> ImageFolder:
    """The training images of the tree or the shards at ``path``, which are listed once for all
    settings."""
    if path is None:
        raise UserError("data.path is not set: give a tree with train/ of class folders (DATA=)")
    return scan_of(form, Path(path))(Path(path), "train", exclude, None)


def _windows(loader: Loader, rounds: int, device: torch.device) -> Tensor:
    """Seconds of each of ``rounds`` windows."""
    stream = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    window = {"loader": lambda: [next(stream) for _ in range(WINDOW)]}
    return take_turns(window, rounds, device)["loader"]
