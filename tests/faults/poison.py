"""``launch.train``, but rank 1 sees a NaN in step 7: in its loss, or in one gradient.

The last argument is ``poison=loss`` or ``poison=gradient``.
"""

import sys

import torch

from launch.command import command
from launch.train import main
from pipeline import distributed
from pipeline.trainer import Trainer

KIND = sys.argv.pop().removeprefix("poison=")
train_step = Trainer.train_step


def poisoned_step(self: Trainer, batch) -> None:
    if self.step == 7 and distributed.rank() == 1:
        if KIND == "loss":
            batch = batch._replace(images=batch.images * torch.nan)
        else:
            self.model.conv1.weight.register_hook(lambda gradient: gradient * torch.nan)
    train_step(self, batch)


Trainer.train_step = poisoned_step

if __name__ == "__main__":
    command(main)
