"""OvSW's two corrections of the gradients of binary weights, between backward pass and optimizer.

Most latent weights lie so far from 0, for gradients so small, that they never change their sign
("silent weights"). Of each output channel c of a layer with weight w and gradient g,

    g_c *= delta norm(w_c) / norm(g_c)      where norm(g_c) < delta norm(w_c)
    g   += decay w                          where a moving average of flips is below 1e-4

so that a channel moves by a certain share of its size at least, and weights that are silent come
nearer to 0. The norms are taken as 1e-6 (g) and 1e-3 (w) at least. Source: Xiang et al., OvSW, ECCV
2024 (arXiv:2407.05257).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models import BinaryNetwork
from models.layers import BinaryConv2d

MOMENTUM = 0.999  # of the moving average of flips, per step
SILENT = 1e-4  # the average below which a weight counts as silent
LEAST_GRADIENT, LEAST_WEIGHT = 1e-6, 1e-3  # norms


class OvSW:
    """Corrects the gradients of the binary weights of ``model`` in place; waits for nothing.

    ``delta`` and ``decay`` are those of this file's equations; a correction whose number is 0 is
    left out.
    """

    def __init__(self, model: BinaryNetwork, delta: float, decay: float) -> None:
        self.delta, self.decay = delta, decay
        self.convs = [*model.binary_convs().values()]
        self.signs = [_signs(conv) for conv in self.convs]  # as they were a step before
        self.flips = [torch.zeros_like(conv.weight) for conv in self.convs]

    @torch.no_grad()
    def correct(self) -> None:
        """Correct the gradients of one step, which are not scaled."""
        for conv, signs, flips in zip(self.convs, self.signs, self.flips, strict=True):
            gradient = conv.weight.grad
            assert gradient is not None
            if self.delta:
                gradient.mul_(_stretch(conv.weight, gradient, self.delta))
            if self.decay:
                _count_flips(conv, signs, flips)
                gradient.addcmul_(conv.weight, flips < SILENT, value=self.decay)

    def tensors(self) -> list[Tensor]:
        """All tensors that ``correct`` keeps from step to step."""
        return [*self.signs, *self.flips]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"signs": self.signs, "flips": self.flips}

    def load_state(self, state: Mapping[str, Any]) -> bool:
        """Take over what ``state`` gave and return True; where that is of another network, or there
        is none, count from the weights as they are."""
        given = [*state.get("signs", ()), *state.get("flips", ())]
        fits = [each.shape for each in given] == [each.shape for each in self.tensors()]
        if not fits:
            given = [*map(_signs, self.convs), *(torch.zeros_like(each) for each in self.flips)]
        for mine, theirs in zip(self.tensors(), given, strict=True):
            mine.copy_(theirs)
        return fits


@torch.no_grad()
def _signs(conv: BinaryConv2d) -> Tensor:
    """Which of the binary weights of ``conv`` are +1, of dtype uint8."""
    return (conv.binarize(conv.signed()) > 0).to(torch.uint8)


def _stretch(weight: Tensor, gradient: Tensor, delta: float) -> Tensor:
    """What each channel of ``gradient`` is multiplied by, (O, 1, 1, 1): 1, or more."""
    norms = [torch.linalg.vector_norm(t, dim=(1, 2, 3), keepdim=True) for t in (weight, gradient)]
    least = norms[0].clamp_(min=LEAST_WEIGHT) * delta
    return least.div_(norms[1].clamp_(min=LEAST_GRADIENT)).clamp_(min=1)


def _count_flips(conv: BinaryConv2d, signs: Tensor, flips: Tensor) -> None:
    """Move the average of flips towards what the last step did to ``signs``."""
    now = _signs(conv)
    flips.lerp_((now ^ signs).to(flips.dtype), 1 - MOMENTUM)
    signs.copy_(now)
