"""How many images a second one core prepares for training.

Processor time is measured, of all threads together, so that other work on the machine counts
little; the disk must keep up with as many cores as take part.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from launch.bench.results import Row, row
from launch.bench.trees import PER_SHARD, QUALITY, given_images, raw_tree
from pipeline.prepare.resize import resize_tree
from pipeline.prepare.shard import shard_tree
from pipeline.run.config import Config


def measure(config: Config, rounds: int, images: int | None) -> list[Row]:
    """images/s and core of ``prepare resize``, to data.resize pixels, and of ``prepare shard``, of
    the images at data.path or so many ``images`` made of them."""
    given, side = given_images(config.data.path), config.data.resize
    jobs: dict[str, Callable[[Path, Path], int]] = {
        f"resize/{side}": partial(resize_tree, side=side, quality=QUALITY, workers=1),
        "shard": partial(shard_tree, images=PER_SHARD, workers=1),
    }
    with tempfile.TemporaryDirectory() as folder:
        raw = raw_tree(Path(folder), given, images or len(given.files))
        count = sum(1 for _ in raw.glob("*/*/*"))
        rows = []
        for name, job in jobs.items():
            seconds = [_seconds(job, raw) for _ in range(rounds)]
            rate = count / torch.tensor(seconds, dtype=torch.float64)
            rows.append(row(name, "ours", "prepare", "throughput_per_core", "images/s", rate))
    return rows


def _seconds(job: Callable[[Path, Path], int], tree: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        job(tree, Path(folder) / "new")
        return time.process_time() - began
