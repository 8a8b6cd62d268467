"""Colour jitter: brightness, contrast and saturation of each image are changed at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.data.draws import MEAN, STD

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in grey, as torchvision has it
DRAWS = 3  # uniforms for an image


class Jitter:
    """Multiplies brightness, then contrast, then saturation of images by factors that are uniform
    in 1 - ``strength`` to 1 + ``strength``.

    The formulas are those of torchvision's ColorJitter, which draws their order too: after each of
    them colours are clipped to 0 and 1. Contrast is about the mean grey of an image.
    """

    def __init__(self, strength: float, device: torch.device) -> None:
        self.strength = strength
        self.mean, self.std = (_channels(values, device) for values in (MEAN, STD))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """``images``, normalised, (N, 3, H, W) floating point, changed by the uniforms ``draws``,
        (N, DRAWS). Computed in at least fp32, and given in the dtype of ``images``."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        factors = (1 + self.strength * (2 * draws - 1)).to(dtype)[:, :, None, None, None]
        brightness, contrast, saturation = factors.unbind(1)
        x = ((images.to(dtype) * std + mean) * brightness).clamp(0, 1)
        x = _away_from(_grey(x).mean((1, 2, 3), keepdim=True), x, contrast)
        x = _away_from(_grey(x), x, saturation)
        return ((x - mean) / std).to(images.dtype)


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None, None]


def _grey(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _away_from(centre: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * centre).clamp(0, 1)
