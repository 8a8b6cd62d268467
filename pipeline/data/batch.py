"""The size of a training batch, where the config's is not one that can be had."""

from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError


def divide_batch(config: Config, size: int) -> Config:
    """``config`` with a batch size that ``size`` processes can share equally, and a line if it is
    another one."""
    batch = config.data.batch_size
    if batch % size == 0:
        return config
    nearest = max(1, round(batch / size)) * size
    logger.info("data.batch_size: %d -> %d, a multiple of %d processes", batch, nearest, size)
    return config.changed({"data.batch_size": nearest})


def fit_batch(batch: int, images: int) -> int:
    """``batch``, or the largest batch that ``images`` training images fill and that the processes
    can share, and a line if it is another one.

    Raises UserError where there are fewer images than processes.
    """
    if batch <= images:
        return batch
    size = processes.size()
    if images < size:
        raise UserError(
            f"data.path: {images} training images are fewer than the {size} processes; start one "
            "process with GPUS=1"
        )
    fitting = images // size * size
    logger.info("data.batch_size: %d -> %d, of %d training images", batch, fitting, images)
    return fitting
