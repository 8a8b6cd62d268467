"""Whole networks on the engine: the logits of evaluation, on every instruction set."""

import copy
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from models import ARCHS
from native import build
from native.engine import Engine
from pipeline.export.engine import LEFT_TO_TORCH, on_engine
from pipeline.export.fuse import fused
from pipeline.run.config import make_config
from tests import quick_where
from tests.export.networks import images_of, network, packed

# Those of 34 layers are those of 18 with more of the same blocks.
NETWORKS = quick_where(lambda arch: "resnet34" not in arch, *ARCHS)


def logits(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("arch", NETWORKS)
def test_the_logits_are_those_of_evaluation(arch, instructions):
    images = images_of(arch, 3)
    engine = Engine(fused(packed(arch)), instructions=instructions)
    found = torch.from_numpy(engine(images.numpy()))
    torch.testing.assert_close(found, logits(network(arch), images), rtol=1e-5, atol=1e-5)
    for threads in (2, 5):
        assert np.array_equal(engine(images.numpy(), threads), found.numpy())


@pytest.mark.parametrize("arch", NETWORKS)
def test_all_instruction_sets_give_the_same_bits(arch, known_sets):
    images = images_of(arch, 1).numpy()
    first, *others = [Engine(fused(packed(arch)), instructions=n)(images) for n in known_sets]
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("arch", ["resnet18", "resnet18_react", "resnet20"])
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


CPU = torch.device("cpu")
FP32 = make_config({}, ["train.device=cpu"], name="evaluation")


def test_evaluation_takes_the_engine(known_sets):
    images = images_of("resnet20", 4)
    ready = on_engine(network(), FP32, CPU)
    assert (ready is network()) == (known_sets[0] == "portable")
    torch.testing.assert_close(ready(images), logits(network(), images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "precision"), [("1w32a", "fp32"), ("32w32a", "fp32"), ("1w1a", "fp64")]
)
def test_what_is_not_binary_in_fp32_is_left_to_torch(bits, precision):
    config = FP32.changed({"train.precision": precision})
    assert on_engine(network(bits=bits), config, CPU) is network(bits=bits)


def test_without_a_compiler_torch_evaluates_and_a_line_says_why(monkeypatch, caplog):
    reason = "there is no C++ compiler; install g++ or clang++"
    monkeypatch.setattr(build, "library", MagicMock(side_effect=build.NoLibrary(reason)))
    with caplog.at_level("INFO", "reste"):
        assert on_engine(network(), FP32, CPU) is network()
    assert caplog.messages == [LEFT_TO_TORCH % reason]


def test_what_signs_would_hide_is_left_to_torch(known_sets, caplog):
    broken = copy.deepcopy(network())
    broken.layer1[0].bn1.running_var[0] = -1
    ready = on_engine(broken, FP32, CPU)
    with caplog.at_level("INFO", "reste"):
        assert logits(ready, images_of("resnet20")).isnan().all()
        assert logits(ready, images_of("resnet20")).isnan().all()
    assert caplog.messages == [LEFT_TO_TORCH % "a norm is not finite"]
