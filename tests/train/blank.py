"""A training of any config on one blank batch: what a step costs, and not what it learns."""

from collections.abc import Iterator

import torch

from models import ARCHS
from pipeline.data.loader import Batch, image_dtype
from pipeline.run import processes
from pipeline.run.config import Config


class BlankLoader:
    """A ``Loader`` of one batch of zeros, which lies on the device and is given again and again."""

    classes: tuple[str, ...] = ()
    fingerprint = ""
    left = 0

    def __init__(self, config: Config, device: torch.device, batches: int) -> None:
        count = config.data.batch_size // processes.size()
        side = config.data.size if ARCHS[config.model.arch].image_size > 32 else 32
        dtype = image_dtype(config.train.precision, device, resident=False)
        images = torch.zeros(count, 3, side, side, dtype=dtype, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        self.images = batches * config.data.batch_size
        self.batches = batches
        self.batch = Batch(images, torch.zeros(count, dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch, until the epoch ends."""
        for _ in range(start, self.batches):
            yield self.batch
