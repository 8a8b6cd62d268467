"""The size of a training batch, where the config's is not one that can be had."""

import math

from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError

Pieces = tuple[int, int]  # into which a process divides its batch: see pieces_of


def pieces_of(config: Config) -> Pieces:
    """What the share of a process must be a multiple of: the parts of train.grad_accumulation, and
    the images that data.mixup blends with each other."""
    return config.train.grad_accumulation, 2 if config.data.mixup else 1


def divide_batch(config: Config, size: int) -> Config:
    """``config`` with a batch size that ``size`` processes can share equally, each of them in its
    ``pieces_of``, and a line if it is another one."""
    batch, pieces = config.data.batch_size, pieces_of(config)
    shares = size * math.lcm(*pieces)
    if batch % shares == 0:
        return config
    nearest = max(1, round(batch / shares)) * shares
    what = _shares(size, pieces)
    logger.info("data.batch_size: %d -> %d, a multiple of %s", batch, nearest, what)
    return config.changed({"data.batch_size": nearest})


def fit_batch(batch: int, images: int, pieces: Pieces = (1, 1)) -> int:
    """``batch``, or the largest batch that ``images`` training images fill and that the processes
    can share, each in ``pieces``, and a line if it is another one.

    Raises UserError where there are fewer images than shares.
    """
    if batch <= images:
        return batch
    shares = processes.size() * math.lcm(*pieces)
    if images < shares:
        few = f"data.path: {images} training images are fewer than the"
        if math.lcm(*pieces) > 1:
            remedy = "set train.grad_accumulation=1 data.mixup=0"
            raise UserError(f"{few} {_shares(processes.size(), pieces)}; {remedy}")
        raise UserError(f"{few} {shares} processes; start one process with GPUS=1")
    fitting = images // shares * shares
    logger.info("data.batch_size: %d -> %d, of %d training images", batch, fitting, images)
    return fitting


def _shares(size: int, pieces: Pieces) -> str:
    """What a batch is divided into."""
    words = (f"{pieces[0]} parts (train.grad_accumulation)", f"{pieces[1]} images (data.mixup)")
    each = " and ".join(word for word, n in zip(words, pieces, strict=True) if n > 1)
    if size == 1 and each:
        return each
    return f"{size} processes with {each}" if each else f"{size} processes"
