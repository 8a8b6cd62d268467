"""The learning rate, against PyTorch's cosine and the official resume's formula."""

import math

import pytest
import torch

from pipeline.train.schedule import learning_rate, progress


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


def test_progress():
    assert progress(0, 10) == 0
    assert progress(9, 10) == 0.9
