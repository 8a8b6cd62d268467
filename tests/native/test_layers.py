"""Layers of the library beside binary convolutions, against torch, to the bit."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from native.engine import Engine
from native.layers import AvgPool, Convolution, MaxPool, Prelu
from native.plan import SPREAD
from tests.native.test_convolution import neutral, signs

SEEDS, SIDES = st.integers(0, 2**32 - 1), st.integers(1, 19)


def run(layers, x, name):
    return torch.from_numpy(Engine(layers, x.shape[1], name)(x.numpy()))


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES, size=st.integers(1, 4), ceil=st.booleans())
def test_means_of_windows(known_sets, seed, height, width, size, ceil):
    height, width = max(height, size), max(width, size)
    x = drawn(seed, 2, 8, height, width)
    expected = F.avg_pool2d(x, size, ceil_mode=ceil)
    for name in known_sets:
        assert torch.equal(run([AvgPool(0, size, ceil)], x, name), expected)


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES, size=st.integers(1, 4), stride=st.integers(1, 3))
def test_maxima_of_windows(known_sets, seed, height, width, size, stride):
    x = drawn(seed, 2, 8, height + size, width + size)
    expected = F.max_pool2d(x, size, stride, size // 2)
    for name in known_sets:
        assert torch.equal(run([MaxPool(0, size, stride, size // 2)], x, name), expected)


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_prelu_and_the_signs_of_what_is_shifted(known_sets, seed, height, width):
    """The second convolution, 1x1 with one weight a row, hands on the signs that it reads."""
    x, w = drawn(seed, 2, 8, height, width), drawn(seed + 1, 8, 8, 3, 3)
    slope, shift, offset = drawn(seed + 2, 3, 8).round(decimals=1)
    y = F.conv2d(signs(x), signs(w), padding=1) + x
    y = torch.where(y > 0, y, slope.view(-1, 1, 1) * y) + shift.view(-1, 1, 1)
    expected = F.conv2d(signs(y + offset.view(-1, 1, 1)), signs(w[:, :, :1, :1]))
    prelu = Prelu(slope.numpy(), shift.numpy())
    bits, point = ((w >= 0).numpy(), (w[:, :, :1, :1] >= 0).numpy())
    first = Convolution(0, bits, neutral(8), 1, 1, 0, prelu=prelu, offset=offset.numpy())
    for name in known_sets:
        assert torch.equal(run([first], x, name), y)
        assert torch.equal(run([first, Convolution(1, point, neutral(8))], x, name), expected)


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES, stride=st.integers(1, 3))
def test_a_real_convolution_starts_at_its_bias(known_sets, seed, height, width, stride):
    x, w, b = drawn(seed, 2, 3, height, width), drawn(seed, 8, 3, 3, 3), drawn(seed, 8)
    layer = Convolution(0, w.numpy(), neutral(8), stride, 1, bias=b.numpy())
    exact = F.conv2d(x.double(), w.double(), b.double(), stride, 1)
    first, *others = [run([layer], x, name) for name in known_sets]
    torch.testing.assert_close(first.double(), exact, rtol=1e-6, atol=1e-5)
    assert all(torch.equal(first, other) for other in others)


def test_an_offset_moves_the_signs_behind_a_max_pooling(instructions):
    x, offset = drawn(3, 1, 8, 9, 9), np.linspace(-1, 1, 8, dtype=np.float32)
    pooled = F.max_pool2d(x, 2) + torch.from_numpy(offset).view(-1, 1, 1)
    point = (drawn(4, 8, 8, 1, 1) >= 0).numpy()
    layers = [MaxPool(0, 2, 2, offset=offset), Convolution(1, point, neutral(8))]
    weight = torch.where(torch.from_numpy(point), 1.0, -1.0)
    assert torch.equal(run(layers, x, instructions), F.conv2d(signs(pooled), weight))


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES, size=st.integers(1, 3), stride=st.integers(1, 2))
def test_no_vector_reads_numbers_whose_products_are_denormal(seed, height, width, size, stride):
    """They take a hundred times as long, and what lies behind a map could be such numbers."""
    weights = drawn(seed, 4, 8, size, size).numpy()
    layer = Convolution(0, weights, neutral(4), stride, size // 2)
    engine = Engine([layer], 8)
    engine(drawn(seed + 1, 1, 8, height + size, width + size).numpy())
    (plan,) = engine._plans.values()
    (spread,) = [each for each in plan.steps if each.kind == SPREAD]
    planes = 8 * min(size, stride) ** 2 * spread.output_plane
    read = plan.arenas[0][spread.output :].view(np.float32)[:planes]
    assert ((read == 0) | (abs(read) > 1e-30)).all()
