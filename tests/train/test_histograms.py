"""Histograms of the latent weights."""

import json

import numpy as np
import pytest
import torch

from launch import train as train_command
from models.resnet_cifar import CifarResNet
from pipeline.train.histograms import BINS, histograms


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CifarResNet("resnet20", "1w1a", 10, "reste", widths=(4, 8, 16), depth=1).double()


def test_they_are_numpys(model):
    found, convs = histograms(model), model.binary_convs()
    assert found.keys() == convs.keys() and len(found) > 3
    assert json.loads(json.dumps(found)) == found
    for name, each in found.items():
        weights = convs[name].weight.detach().numpy()
        limit = abs(weights).max()
        counts, _ = np.histogram(weights, BINS, (-limit, limit))
        assert (each["limit"], each["counts"]) == (limit, counts.tolist())


def test_the_smallest_weights_lie_on_their_side_of_zero(model):
    (name, conv), *_ = model.binary_convs().items()
    n = conv.weight.numel()
    with torch.no_grad():
        values = torch.tensor([1.0, -1.0, 0.0, -0.0, -1e-300, 1e-300], dtype=torch.float64)
        conv.weight.copy_(values.repeat(n // 6 + 1)[:n].view_as(conv.weight))
    counts = histograms(model)[name]["counts"]
    negative = int((conv.weight < 0).sum())
    assert counts[0] + counts[BINS // 2 - 1] == negative == sum(counts[: BINS // 2])
    assert sum(counts) == n and counts[-1] == int((conv.weight == 1).sum())


@pytest.mark.parametrize("value", [0.0, 1e-310])
def test_a_layer_that_has_died_counts_too(model, value):
    (name, conv), *_ = model.binary_convs().items()
    torch.nn.init.constant_(conv.weight, value)
    assert sum(histograms(model)[name]["counts"]) == conv.weight.numel()


@pytest.fixture
def words(cifar, tiny_arch, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "{model: {arch: tiny, num_classes: 2}, data: {batch_size: 8, eval_batch_size: 5}, "
        "train: {epochs: 3}, log: {every: 9, eta: 0}}"
    )
    return [str(tmp_path / "tiny.yaml"), f"data.path={cifar}", f"run.dir={tmp_path}/runs"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["log.histograms=2"], [1]),
        (["log.histograms=1"], [0, 1, 2]),
        ([], []),
        (["log.histograms=1", "model.bits=32w32a"], []),
    ],
)
def test_they_are_recorded_every_few_epochs(words, more, expected, tmp_path):
    train_command.main([*words, *more])
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = [each for each in records if each["kind"] == "histograms"]
    assert [each["epoch"] for each in found] == expected
    assert records[-1]["kind"] == "epoch"
    assert all(sum(w["counts"]) > 0 for each in found for w in each["weights"].values())


def test_they_change_nothing_in_a_training(words, tmp_path):
    losses = []
    for name, every in (("with", 1), ("without", 0)):
        train_command.main([*words, f"run.name={name}", f"log.histograms={every}"])
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append([each["val_loss"] for each in map(json.loads, lines) if "val_loss" in each])
    assert losses[0] == losses[1] and len(losses[0]) == 3
