"""The learning rate, against PyTorch's cosine, the official resume's formula and known figures."""

import math

import pytest
import torch

from pipeline.run.config import make_config
from pipeline.train.schedule import learning_rate, progress, rate_of


def test_without_warmup_it_is_torchs_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for epoch in range(30):
        assert learning_rate(epoch, 30, 0.1) == pytest.approx(cosine.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        cosine.step()


def test_warmup_then_cosine():
    rates = [learning_rate(e, 1000, 0.1, 5) for e in range(1000)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5] == pytest.approx(0.05 * (1 + math.cos(math.pi / 996)))
    assert max(rates) == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 10, 0.1, 1) == 0.1


SHAPES = {
    "linear": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    "step": [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2],
}
WARMED = {
    "linear": [0.4, 0.8, 0.8 * 6 / 7, 0.8 * 5 / 7, 0.8 * 4 / 7, 0.8 * 3 / 7, 0.8 * 2 / 7, 0.8 / 7],
    "step": [0.4, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2],
}


@pytest.mark.parametrize("schedule", SHAPES)
def test_other_shapes_are_those_of_the_config(schedule):
    """Eight epochs at a rate of 0.8, which is halved at epochs 3 and 5 where it falls in steps."""
    words = [f"optim.schedule={schedule}", "optim.milestones=3, 5", "optim.factor=0.5"]
    words += ["optim.lr=0.8", "train.epochs=8"]
    for warmup, expected in ((0, SHAPES), (2, WARMED)):
        config = make_config({}, [*words, f"optim.warmup_epochs={warmup}"], name="x")
        rates = [rate_of(config, epoch) for epoch in range(8)]
        assert rates == pytest.approx(expected[schedule], abs=1e-12)


def test_the_cosine_is_the_schedule_of_a_config():
    config = make_config({}, ["optim.warmup_epochs=5"], name="x")
    assert [rate_of(config, e) for e in range(9)] == [
        learning_rate(e, 1000, 0.1, 5) for e in range(9)
    ]


def test_progress():
    assert progress(0, 10) == 0
    assert progress(9, 10) == 0.9
