"""Colour jitter: the formulas of torchvision, and what a strength of nothing leaves alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from pipeline.data.draws import MEAN, STD, uniforms
from pipeline.data.jitter import DRAWS, Jitter
from tests.data.fixtures import CPU

MEANS, STDS = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))


def normalised(dtype=torch.float64, images=6):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, 5, 7, generator=generator, dtype=torch.float64)
    return ((pixels - MEANS) / STDS).to(dtype, memory_format=torch.channels_last)


def draws_for(images=6):
    return uniforms(1, 0, torch.arange(images), DRAWS)


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.0])
def test_it_is_torchvisions(strength):
    """Brightness, contrast and saturation, one after the other, of each image for itself."""
    images, draws = normalised(), draws_for()
    found = Jitter(strength, CPU)(images, draws)
    for image, changed, row in zip(images, found, draws.tolist(), strict=True):
        expected = image * STDS + MEANS
        steps = (
            functional.adjust_brightness,
            functional.adjust_contrast,
            functional.adjust_saturation,
        )
        for change, u in zip(steps, row, strict=True):
            expected = change(expected, 1 - strength + 2 * strength * u)
        torch.testing.assert_close(changed * STDS + MEANS, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_and_layout_stay(dtype):
    images = normalised(dtype)
    found = Jitter(0.4, CPU)(images, draws_for())
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    exact = Jitter(0.4, CPU)(images.double(), draws_for())
    torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0.02)


def test_the_middle_of_the_draws_changes_nothing():
    images = normalised()
    found = Jitter(0.4, CPU)(images, torch.full((6, DRAWS), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found, images)
