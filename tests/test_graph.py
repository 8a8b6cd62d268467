"""Captured steps. Without a GPU a traced graph of operators stands in for the CUDA graph: like it,
it replays what was recorded, in the same tensors, and no Python runs again."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from models import build_model
from pipeline import graph, trainer
from pipeline.checkpoint import CheckpointStore
from pipeline.cifar import CifarLoader, CifarSplit
from pipeline.config import load_config
from pipeline.data import image_dtype
from pipeline.errors import UserError
from pipeline.log import JsonLines, Wandb

CPU = torch.device("cpu")
CONFIG = "configs/cifar10_resnet20.yaml"
SMALL = ["data.batch_size=4", "data.eval_batch_size=8", "train.epochs=3", "log.eta=0"]


def split(images):
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return CifarSplit(pixels, labels, tuple("abcdefghij"), str(images))


def make_trainer(folder, *overrides, device=CPU, images=26):
    """A training of resnet20 on noise: 6 steps an epoch, 3 batches of evaluation, the last ragged."""
    config = load_config(CONFIG, [*SMALL, "optim.warmup_epochs=1", f"run.dir={folder}", *overrides])
    options = {"seed": 1, "augment": True, "dtype": image_dtype(config, device), "device": device}
    train = CifarLoader(split(images), batch_size=config.data.batch_size, train=True, **options)
    val = CifarLoader(split(20), batch_size=config.data.eval_batch_size, train=False, **options)
    torch.manual_seed(0)
    store = CheckpointStore(Path(folder), 1)
    model = build_model("resnet20")
    return trainer.Trainer(config, model, (train, val), device, store, trainer.StopSignal())


class Traced:
    """A stand-in for ``Graphs`` on the CPU."""

    recorded = 0

    def __init__(self):
        self.owners = []

    def warm_up(self, step):
        step()

    def record(self, step):
        tensors = list(step.__self__._tensors())
        before = [tensor.detach().clone() for tensor in tensors]
        replay = make_fx(lambda: (step(), None)[1])()  # which takes the step, other than a capture
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        Traced.recorded += 1

        def run():
            with torch.no_grad():
                replay()

        return run


@pytest.fixture
def traced(monkeypatch):
    """Whatever is made in here is captured."""
    monkeypatch.setattr(Traced, "recorded", 0)
    monkeypatch.setattr(graph, "make_graphs", lambda *_: Traced())


def fit(run, folder):
    folder.mkdir(parents=True, exist_ok=True)
    metrics = JsonLines(folder / "metrics.jsonl")
    run.fit(metrics, Wandb("disabled", "", folder, {}))
    return run


def results(run):
    """All that a training leaves, but times."""
    state = run.state()
    return {
        key: state[key]
        for key in ("state_dict", "optimizer", "scaler", "ema", "sums", "best", "last", "watch")
    }


def assert_equal(found, expected):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    else:
        assert found == expected


EXTRAS = {
    "plain": [],
    "everything": [
        "train.ema_decay=0.9",
        "train.label_smoothing=0.1",
        "indicators.enabled=true",
        "indicators.official=true",
        "estimator.name=ede",
    ],
    "fp16": ["train.precision=fp16"],
    "bf16": ["train.precision=bf16"],
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_replays_equal_the_eager_steps(tmp_path, monkeypatch, extra):
    """Learning rate, estimator, order and augmentation change between and within the epochs."""
    records = {}
    monkeypatch.setattr(
        trainer.Trainer, "_write", lambda self, record: records[self].append(record)
    )
    plain = make_trainer(tmp_path, *EXTRAS[extra])
    monkeypatch.setattr(graph, "make_graphs", lambda *_: Traced())
    monkeypatch.setattr(Traced, "recorded", 0)
    captured = make_trainer(tmp_path, *EXTRAS[extra])
    for run in (plain, captured):
        records[run] = []
        fit(run, tmp_path)
    assert Traced.recorded == 2
    assert_equal(results(captured), results(plain))
    for found, expected in zip(records[captured], records[plain], strict=True):
        for time in ("images_per_second", "data_wait", "seconds"):
            found.pop(time, None), expected.pop(time, None)
        assert found == expected
