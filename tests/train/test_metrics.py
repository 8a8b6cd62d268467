"""Sums over an epoch against a plain loop."""

import math

import pytest
import torch

from pipeline.data.loader import IGNORED
from pipeline.train.metrics import Sums, cross_entropy


@pytest.mark.parametrize("classes", [2, 4, 5, 10])
def test_sums_against_a_plain_loop(classes):
    sums, hits1, hits5, losses = Sums(torch.device("cpu")), 0, 0, []
    for size in (7, 1, 4):
        logits, labels = torch.randn(size, classes), torch.randint(0, classes, (size,))
        sums.update(logits, labels, cross_entropy(logits, labels))
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            rank = sorted(row, reverse=True).index(row[label])
            hits1, hits5 = hits1 + (rank < 1), hits5 + (rank < 5)
            losses.append(math.log(sum(map(math.exp, row))) - row[label])
    means = sums.means()
    assert means["top1"] == pytest.approx(100 * hits1 / 12)
    assert means["top5"] == pytest.approx(100 * hits5 / 12)
    assert means["loss"] == pytest.approx(sum(losses) / 12, rel=1e-5)
    assert means["images"] == 12


def test_a_batch_that_is_not_finite_is_left_out():
    sums = Sums(torch.device("cpu"))
    logits, labels = torch.eye(3), torch.arange(3)
    sums.update(logits, labels, torch.tensor(1.0))
    sums.update(logits * math.nan, labels, torch.tensor(math.nan))
    assert sums.means() == {"loss": 1.0, "top1": 100.0, "top5": 100.0, "images": 3}


def test_an_image_that_fills_a_batch_up_is_left_out():
    logits, labels = torch.randn(6, 7), torch.tensor([3, IGNORED, 0, 1, IGNORED, IGNORED])
    sums, expected, kept = Sums(torch.device("cpu")), Sums(torch.device("cpu")), labels >= 0
    sums.update(logits, labels, cross_entropy(logits, labels))
    expected.update(logits[kept], labels[kept], cross_entropy(logits[kept], labels[kept]))
    assert sums.means() == pytest.approx(expected.means())
    assert sums.means()["images"] == 3
