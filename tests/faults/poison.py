"""``launch.train``, but something happens to rank 1, which the last argument says.

poison=loss, poison=gradient: a NaN in step 7; poison=evaluation: SIGUSR1 in the first evaluation.
"""

import os
import signal
import sys

import torch

from launch.command import command
from launch.train import main
from pipeline.run import processes
from pipeline.train.trainer import Trainer

KIND = sys.argv.pop().removeprefix("poison=")
train_step, evaluate = Trainer.train_step, Trainer._evaluate


def poisoned_step(self: Trainer, batch) -> None:
    if KIND != "evaluation" and self.step == 7 and processes.rank() == 1:
        if KIND == "loss":
            batch = batch._replace(images=batch.images * torch.nan)
        else:
            self.state.model.conv1.weight.register_hook(lambda gradient: gradient * torch.nan)
    train_step(self, batch)


def poisoned_evaluation(self: Trainer):
    if KIND == "evaluation" and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return evaluate(self)


Trainer.train_step, Trainer._evaluate = poisoned_step, poisoned_evaluation

if __name__ == "__main__":
    command(main)
