"""A training in small: a network of 4 to 16 channels on noise that lies in memory."""

import functools
from pathlib import Path

import torch

from models import Arch, build_model
from models.resnet_cifar import CifarResNet
from pipeline.data.cifar_files import CifarSplit
from pipeline.data.loader import Batch, image_dtype
from pipeline.data.loader_resident import CifarLoader
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.config import load_config
from pipeline.run.recorder import JsonLines, Recorder
from pipeline.run.signals import StopSignal
from pipeline.train.trainer import Trainer
from tests import ROOT

CPU = torch.device("cpu")
CONFIG = ROOT / "configs/cifar10_resnet20.yaml"
SMALL = [
    "data.batch_size=4",
    "data.eval_batch_size=8",
    "train.epochs=3",
    "optim.warmup_epochs=0",
    "log.eta=0",
]


def split(images):
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return CifarSplit(pixels, labels, tuple("abcdefghij"), str(images))


class Streamed:
    """A loader whose batches come one by one, as those of an image folder do, without fillers."""

    def __init__(self, loader):
        self.loader = loader
        for name in ("images", "left", "classes", "fingerprint"):
            setattr(self, name, getattr(loader, name))

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch, start=0):
        for at, (images, labels) in enumerate(self.loader.epoch(epoch, start), start):
            n = len(self.loader._plan.indices((epoch, at)))  # counting labels would wait for them
            yield Batch(images[:n].clone(memory_format=torch.channels_last), labels[:n].clone())


def make_trainer(
    folder, *overrides, device=CPU, images=26, streamed=False, arch=None, taught=False
):
    """A training on noise: 6 steps an epoch, 3 batches of evaluation, the last one ragged.

    ``arch``: a whole network instead of a small one; ``taught``: by a small one with real weights.
    """
    config = load_config(CONFIG, [*SMALL, f"run.dir={folder}", *overrides])
    dtype = image_dtype(config.train.precision, device, resident=True)
    options = {"seed": 1, "augment": True, "dtype": dtype, "device": device}
    train = CifarLoader(split(images), batch_size=config.data.batch_size, train=True, **options)
    val = CifarLoader(split(20), batch_size=config.data.eval_batch_size, train=False, **options)
    if streamed:
        train, val = Streamed(train), Streamed(val)
    torch.manual_seed(0)
    name = config.estimator.name
    model = build_model(arch, "1w1a", 10, name) if arch else small(name)
    teacher = small(name, "32w32a") if taught else None
    return assemble(config, model, (train, val), device, folder, teacher)


TINY = Arch("tiny", functools.partial(CifarResNet, widths=(4, 8, 16), depth=1), 32, "cifar10")


def small(estimator="reste", bits="1w1a", classes=10):
    """A network of 4 to 16 channels."""
    return CifarResNet("resnet20", bits, classes, estimator, widths=(4, 8, 16), depth=1)


def assemble(config, model, loaders, device, folder, teacher=None):
    """The training of ``model`` that writes into ``folder``, as a command puts it together."""
    store = CheckpointStore(Path(folder), config.checkpoint.keep)
    return Trainer(config, model, loaders, device, store, StopSignal(), Recorder(), teacher)


def fit(trainer, folder):
    """Train to the end; the records go to metrics.jsonl in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer.recorder.lines = JsonLines(folder / "metrics.jsonl")
    trainer.fit()
    return trainer
