"""What an engine refuses, before anything runs."""

import numpy as np
import pytest

from native.engine import Engine
from native.layers import Convolution, Flatten, Linear, MaxPool, Mean
from tests.native.test_convolution import neutral

NORM = neutral(8)
BITS = np.ones((8, 8, 3, 3), np.bool_)
REAL = np.ones((8, 8, 3, 3), np.float32)


@pytest.fixture(autouse=True)
def needs_the_library(known_sets):
    pass


def images(*shape):
    return np.zeros(shape or (1, 8, 6, 6), np.float32)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([Convolution(0, BITS[:, :4], NORM, padding=1)], "does not fit the value"),
        ([Convolution(0, BITS[:6], neutral(6), padding=1)], "6 channels are no multiple of 4"),
        ([Convolution(0, BITS, NORM, padding=0)], "not 3x3 with padding 1"),
        ([Convolution(0, BITS, neutral(4), padding=1)], "does not fit the channels"),
        ([Convolution(0, BITS, NORM, 2, 1, residual=0)], "a residual has another size"),
        ([Convolution(0, REAL, NORM, 1, 1, residual=0)], "a real convolution has a residual"),
        ([Convolution(0, np.ones((8, 8, 9, 9), np.float32), NORM)], "too small"),
        ([Mean(0), Mean(1)], "reads a vector"),
        ([MaxPool(0, 2, 1, 2)], "impossible window"),
        ([Mean(0), Linear(1, np.ones((3, 9), np.float32), np.ones(3, np.float32))], "linear"),
        ([Linear(0, np.ones((3, 8), np.float32), np.ones(3, np.float32))], "linear"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, reason):
    with pytest.raises(ValueError, match=reason):
        Engine(layers, 8)(images())


@pytest.mark.parametrize(
    "wrong", [images(1, 3, 6, 6), images(8, 6, 6), np.zeros((1, 8, 6, 6)), images(1, 8, 0, 6)]
)
def test_images_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        Engine([Flatten(0)], 8)(wrong)


def test_no_images_give_no_results():
    assert Engine([Flatten(0)], 8)(images(0, 8, 6, 6)).shape == (0, 288)


def test_many_sizes_of_images_may_follow_each_other():
    engine = Engine([Convolution(0, BITS, NORM, padding=1), Mean(1)], 8)
    for side in range(1, 14):
        whole = engine(images(2, 8, side, side), threads=2)
        assert np.array_equal(whole, engine(images(2, 8, side, side)))
