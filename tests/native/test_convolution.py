"""Binary convolutions of the library, which are exact: every bit of every sum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from native.engine import Engine
from native.layers import Convolution, Norm

# Channels in and out, height, width, stride, side of the window.
CASES = [
    (16, 16, 7, 5, 1, 3),
    (64, 64, 56, 56, 1, 3),
    (64, 128, 57, 55, 2, 3),
    (128, 64, 13, 1, 2, 3),
    (128, 16, 1, 30, 1, 3),
    (256, 512, 1, 1, 1, 3),
    (256, 512, 1, 1, 2, 3),
    (512, 512, 7, 7, 1, 3),
    (20, 12, 31, 33, 1, 3),  # bits that fill no word, of rows that fill no vector
    (24, 8, 6, 10, 3, 3),
    (32, 16, 9, 11, 1, 1),
    (64, 64, 9, 12, 2, 1),
]


def neutral(channels, relu=False):
    """A norm that changes nothing."""
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return Norm(zeros, ones, zeros, relu)


def signs(x):
    return torch.where(x >= 0, 1.0, -1.0)


def drawn(case, seed=0):
    """Inputs with zeros of both signs among them, weights, and the convolution of their signs."""
    channels, count, height, width, stride, size = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, height, width, generator=generator)
    x.view(-1)[::7], x.view(-1)[3::7] = 0.0, -0.0
    w = torch.randn(count, channels, size, size, generator=generator)
    return x, w, F.conv2d(signs(x), signs(w), stride=stride, padding=size // 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_sum_is_that_of_torch(case, threads, instructions):
    x, w, expected = drawn(case)
    channels, count, _, _, stride, size = case
    layer = Convolution(0, (w >= 0).numpy(), neutral(count), stride, size // 2)
    engine = Engine([layer], channels, instructions)
    assert torch.equal(torch.from_numpy(engine(x.numpy(), threads)), expected)
