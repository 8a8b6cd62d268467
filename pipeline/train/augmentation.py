"""What happens to training batches on the device, alike for every loader: colour jitter and mixup.

All draws depend on the seed, the number of the step since the training began, and the place of an
image in the batch of all processes. So a run that goes on draws what it would have drawn, and the
number of processes changes nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.data import draws
from pipeline.data.jitter import DRAWS, Jitter
from pipeline.data.loader import Batch
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.train import mixup


class Augmentation:
    """Changes each batch as ``data.jitter`` and ``data.mixup`` say.

    All that changes from step to step is in ``step``, a tensor that stays where it is, so that a
    captured step can do it.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.alpha, self.classes = config.data.mixup, config.network[2]
        self.jitter = Jitter(config.data.jitter, device) if config.data.jitter else None
        self.keys = {kind: draws.key_of(config.seed, kind) for kind in (draws.JITTER, draws.MIXUP)}
        self.step = torch.zeros(1, dtype=torch.int64, device=device)  # of the next batch

    def seek(self, step: int) -> None:
        """Let the next batch be that of ``step``, from 0 on since the training began."""
        self.step.fill_(step)

    def __call__(self, batch: Batch) -> Batch | mixup.Mixed:
        """The changed batch, of the step that is due; waits for nothing."""
        images, labels = batch
        if self.jitter:
            drawn = draws.uniforms_of(self.keys[draws.JITTER], self._places(len(labels)), DRAWS)
            images = self.jitter(images, drawn)
        changed: Batch | mixup.Mixed = Batch(images, labels)
        if self.alpha:
            drawn = draws.uniforms_of(self.keys[draws.MIXUP], self.step, mixup.DRAWS)
            share = mixup.larger_share(drawn, self.alpha)
            changed = mixup.mixed(Batch(images, labels), share, self.classes)
        self.step.add_(1)
        return changed

    def tensors(self) -> Iterator[Tensor]:
        """What a captured step reads and writes here."""
        yield self.step

    def _places(self, images: int) -> Tensor:
        """A number for each image of this batch that no other one has, (images,) int64."""
        first = processes.rank() * images
        here = torch.arange(first, first + images, device=self.step.device)
        return self.step * (processes.size() * images) + here


def make_augmentation(config: Config, device: torch.device) -> Augmentation | None:
    """What ``config`` asks for, or None where it asks for nothing."""
    is_wanted = config.data.jitter or config.data.mixup
    return Augmentation(config, device) if is_wanted else None
