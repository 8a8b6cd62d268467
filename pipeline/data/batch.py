"""The size of a training batch, where the config's is not one that can be had."""

from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError


def divide_batch(config: Config, size: int) -> Config:
    """``config`` with a batch size that ``size`` processes can share equally, each of them in
    ``train.grad_accumulation`` parts, and a line if it is another one."""
    batch, parts = config.data.batch_size, config.train.grad_accumulation
    shares = size * parts
    if batch % shares == 0:
        return config
    nearest = max(1, round(batch / shares)) * shares
    what = _shares(size, parts)
    logger.info("data.batch_size: %d -> %d, a multiple of %s", batch, nearest, what)
    return config.changed({"data.batch_size": nearest})


def fit_batch(batch: int, images: int, parts: int = 1) -> int:
    """``batch``, or the largest batch that ``images`` training images fill and that the processes
    can share, each in ``parts``, and a line if it is another one.

    Raises UserError where there are fewer images than shares.
    """
    if batch <= images:
        return batch
    shares = processes.size() * parts
    if images < shares:
        few = f"data.path: {images} training images are fewer than the"
        if parts > 1:
            what = _shares(processes.size(), parts)
            raise UserError(f"{few} {what}; set train.grad_accumulation=1")
        raise UserError(f"{few} {shares} processes; start one process with GPUS=1")
    fitting = images // shares * shares
    logger.info("data.batch_size: %d -> %d, of %d training images", batch, fitting, images)
    return fitting


def _shares(size: int, parts: int) -> str:
    """What a batch is divided into."""
    if parts == 1:
        return f"{size} processes"
    each = f"{parts} parts (train.grad_accumulation)"
    return each if size == 1 else f"{size} processes with {each}"
