"""What a person adds needs no change elsewhere: an estimator, a network, a loader, a metric.

Each test registers one from outside, trains with it by the command, and takes it away again.
"""

import json
from functools import partial

import pytest
import torch

import models
from kernels import ESTIMATORS, estimators
from kernels.estimators import Estimator, Option
from kernels.estimators.ste import ESTIMATOR as STE
from launch import train as train_command
from models.resnet_cifar import CifarResNet
from pipeline.data import open as data_open
from pipeline.data.loader_torchvision import TorchvisionLoader
from pipeline.run.errors import UserError
from pipeline.train import metrics
from pipeline.train.metrics import METRICS, Metric, share


@pytest.fixture
def train(cifar, tmp_path):
    """Trains for an epoch of 5 steps with further overrides; returns the last record."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8, eval_batch_size: 12},"
        "train: {epochs: 1, device: cpu}, log: {eta: 0}}"
    )

    def run(*overrides, path=cifar):
        places = [f"data.path={path}", f"run.dir={tmp_path}/runs"]
        train_command.main([str(config), *places, *overrides])
        lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])

    return run


def test_an_estimator(train, monkeypatch):
    """A straight-through estimator that stops at a threshold of its own."""
    seen = []

    def factor(x, params):
        seen.append(params.item())
        return x.abs().le_(params)

    toy = Estimator(
        name="toy",
        source="this test",
        parameters=("a",),
        schedule=lambda progress, toy_a=1.0: (toy_a,),
        factor=factor,
        triton_factor=STE.triton_factor,
        surrogate=STE.surrogate,
        options={"toy_a": Option(1.0, 0.5, 2, "beyond it there is no gradient")},
    )
    with pytest.raises(UserError, match="estimator.name is 'toy'"):
        train("estimator.name=toy")
    monkeypatch.setattr(estimators, "ESTIMATORS", ESTIMATORS)  # taken back with what is added
    estimators.register(toy)
    try:
        with pytest.raises(UserError, match="estimator.toy_a is 3.*between 0.5 and 2"):
            train("estimator.name=toy", "estimator.toy_a=3")
        record = train("estimator.name=toy", "estimator.toy_a=1.5", "indicators.enabled=true")
    finally:
        del ESTIMATORS["toy"]
    assert record["a"] == 1.5 and set(seen) == {1.5}
    assert record["indicators"]["total"]["error"] > 0


def test_a_network(train):
    build = partial(CifarResNet, widths=(4, 8), depth=1)
    models.register(models.Arch("toy", build, image_size=32, dataset="cifar10"))
    try:
        record = train("model.arch=toy", "model.bits=1w1a")
    finally:
        del models.ARCHS["toy"]
    assert 0 <= record["val_top1"] <= 100
    with pytest.raises(UserError, match="model.arch is 'toy'"):
        train("model.arch=toy", "run.name=other")


def test_a_loader(train, cifar, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "train").symlink_to(cifar / "train")
    (tree / "val").symlink_to(cifar / "test")
    opened = []

    class ToyLoader(TorchvisionLoader):
        def __init__(self, *arguments, **options):
            opened.append(options["train"])
            super().__init__(*arguments, **options)

    sizes = ("data.dataset=imagenet", "data.size=32", "data.resize=32", "data.workers=0")
    choice = (*sizes, "data.loader=toy")
    with pytest.raises(UserError, match="data.loader is 'toy'; choose one of auto, dali"):
        train(*choice, path=tree)
    data_open.LOADERS["toy"] = ToyLoader
    try:
        train(*choice, path=tree)
    finally:
        del data_open.LOADERS["toy"]
    assert opened == [True, False]


def test_a_metric(train, capsys):
    """Top-2 of two classes holds for every image, whatever the network."""

    def hits(logits, labels):
        rank = (logits > logits.gather(1, labels.clamp(min=0)[:, None])).sum(1)
        return ((rank < 2) & (labels >= 0)).sum()

    METRICS["top2"] = Metric("top2", "top-2", share, sum=hits, in_training=True)
    try:
        record = train("checkpoint.every_steps=2")
    finally:
        del METRICS["top2"]
    assert record["train_top2"] == record["val_top2"] == 100
    said = capsys.readouterr().err
    assert "top2 100.00" in said and "top-2 100.00 %" in said


def test_sums_of_a_further_metric_leave_out_what_does_not_count(monkeypatch):
    count = Metric("sum", "sum", lambda total, n: total / n, lambda x, y: x.sum(), unit="")
    monkeypatch.setattr(metrics, "METRICS", {**METRICS, "sum": count})
    sums = metrics.Sums(torch.device("cpu"))
    for loss in (1.0, float("nan"), 3.0):
        sums.update(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor(loss))
    assert sums.means()["sum"] == 3 and sums.means()["images"] == 4
