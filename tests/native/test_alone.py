"""The library on other processors, and that it reads and writes nothing but its own."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import build
from native.engine import Engine
from native.layers import (
    Affine,
    AvgPool,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Norm,
    Prelu,
    Skip,
)
from native.plan import Plan
from tests.native import alone

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
SEEDS = st.integers(0, 2**32 - 1)


def norm(random, channels, relu=True):
    mean, slope, bias = random.standard_normal((3, channels)).astype(np.float32)
    return Norm(mean, slope, bias, relu)


def binary(random, value, channels, count, size=3, **options):
    weight = random.random((count, channels, size, size)) < 0.5
    offset = random.standard_normal(count).astype(np.float32)
    options = {"offset": offset, **options}
    return Convolution(value, weight, norm(random, count), padding=size // 2, **options)


def real(random, value, channels, count, size, stride, padding):
    weight = random.standard_normal((count, channels, size, size)).astype(np.float32)
    bias = random.standard_normal(count).astype(np.float32)
    return Convolution(value, weight, norm(random, count), stride, padding, bias=bias)


def prelu(random, channels):
    return Prelu(*random.standard_normal((2, channels)).astype(np.float32))


def shortcut(random, width, wider):
    """Values 4 and 5, of which the second is half as large as value 3."""
    if random.random() < 0.5:
        return AvgPool(3, 2, ceil=True), real(random, 4, width, wider, 1, 1, 0)
    return AvgPool(3, 1), real(random, 3, width, wider, 1, 2, 0)


def network(seed):
    """Layers with every kind of step, and images of a size that fits."""
    random = np.random.default_rng(seed)
    unit, most = [(4, 9), (64, 2)][random.integers(2)]  # the latter fill tiles
    width, wider = unit * random.integers(1, most + 1, 2)
    size, stride = random.choice([(7, 2), (3, 1), (5, 3), (1, 1)])
    layers = [
        real(random, 0, 3, width, size, stride, size // 2),
        MaxPool(1, *random.choice([(3, 2, 1), (2, 2, 0), (1, 1, 0)])),
        binary(random, 2, width, width, residual=2, prelu=prelu(random, width)),
        *shortcut(random, width, wider),
        binary(random, 3, width, wider, stride=2, residual=5),
        binary(random, 6, wider, wider, random.choice([1, 3])),
        Skip(7, 4 * random.integers(3)),
        random.choice([Flatten, Mean])(8),
    ]
    images = random.standard_normal((random.integers(1, 4), 3, *random.integers(9, 41, 2)))
    return with_head(random, layers, images.astype(np.float32))


def with_head(random, layers, images):
    last, length = len(layers), Plan(layers, *images.shape[1:]).result.channels
    weight = random.standard_normal((7, length)).astype(np.float32)
    bias = random.standard_normal(7).astype(np.float32)
    head = [Affine(last, norm(random, length)), Linear(last + 1, weight, bias)]
    return [*layers, *head], images


@pytest.fixture(scope="module", params=[alone.ADDRESSES, alone.THREADS], ids=" ".join)
def checked(request, tmp_path_factory, known_sets):
    """The program under the sanitizers of addresses and of threads."""
    options = ("-O1", "-g", *request.param)
    folder = tmp_path_factory.mktemp("checked")
    return alone.compiled(build._compiler(), folder, build._machine(), options)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=SEEDS, threads=st.integers(1, 3))
def test_buffers_are_kept_and_threads_do_not_race(checked, known_sets, seed, threads):
    layers, images = network(seed)
    for name in known_sets:
        found = alone.results([checked], layers, images, name, threads)
        expected = Engine(layers, instructions="portable")(images)
        assert np.array_equal(found[:, :, 0, 0], expected)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The command that runs the program on an emulated ARM processor."""
    for program in (CROSS, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    path = alone.compiled([CROSS], tmp_path_factory.mktemp("emulated"), "aarch64")
    return [EMULATOR, "-L", "/usr/aarch64-linux-gnu", path]


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=SEEDS, threads=st.integers(1, 3))
def test_neon_gives_the_same_bits(emulated, known_sets, seed, threads):
    layers, images = network(seed)
    expected = Engine(layers, instructions=known_sets[0])(images)
    for name in ("neon", "portable"):
        found = alone.results(emulated, layers, images, name, threads)
        assert np.array_equal(found[:, :, 0, 0], expected)
