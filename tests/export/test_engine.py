"""Whole networks on the engine: the logits of evaluation, on every instruction set."""

import copy

import numpy as np
import pytest
import torch

from models import ARCHS
from native.engine import Engine
from pipeline.export.fuse import fused
from tests.export.networks import images_of, network, packed


def logits(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_logits_are_those_of_evaluation(arch, instructions):
    images = images_of(arch, 3)
    engine = Engine(fused(packed(arch)), instructions=instructions)
    found = torch.from_numpy(engine(images.numpy()))
    torch.testing.assert_close(found, logits(network(arch), images), rtol=1e-5, atol=1e-5)
    for threads in (2, 5):
        assert np.array_equal(engine(images.numpy(), threads), found.numpy())


@pytest.mark.parametrize("arch", ARCHS)
def test_all_instruction_sets_give_the_same_bits(arch, known_sets):
    images = images_of(arch, 1).numpy()
    first, *others = [Engine(fused(packed(arch)), instructions=n)(images) for n in known_sets]
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("arch", ["resnet18", "resnet20"])
def test_float64_finds_the_engine_no_further_off_than_torch(arch, instructions):
    images = images_of(arch, 8)
    judge = copy.deepcopy(network(arch)).double()
    judge.set_progress(0)
    exact = logits(judge, images.double())
    found = torch.from_numpy(Engine(fused(packed(arch)), instructions=instructions)(images.numpy()))
    allowed = (logits(network(arch), images) - exact).abs().amax(1) + 1e-5
    assert ((found - exact).abs().amax(1) <= allowed).all()


def test_an_image_with_a_pixel_that_is_not_finite_gives_nan_alone(instructions):
    images = images_of("resnet20", 3)
    engine = Engine(fused(packed()), instructions=instructions)
    expected = engine(images.numpy())
    for bad in (np.nan, np.inf, -np.inf):
        images[1, 2, 31, 31] = bad
        for threads in (1, 4):
            found = engine(images.numpy(), threads)
            assert np.isnan(found[1]).all() and np.array_equal(found[::2], expected[::2])


def test_images_are_read_as_they_lie(instructions):
    images = images_of("resnet20", 3)
    engine = Engine(fused(packed()), instructions=instructions)
    expected = engine(images.numpy())
    flipped = images.flip(3).contiguous().numpy()[:, :, :, ::-1]
    last = images.to(memory_format=torch.channels_last).numpy()
    assert np.array_equal(engine(flipped), expected) and np.array_equal(engine(last), expected)
