"""Bop, an optimizer for binary weights that keeps no latent ones.

For a weight w of ±1 with gradient g and an adaptivity rate gamma,

    m = (1 - gamma) m + gamma g          w = -w where m w > threshold

so a weight flips once its gradients have agreed for long enough that it should. The gradient passes
the sign unchanged. All other parameters are Adam's. Source: Helwegen et al., Latent Weights Do Not
Exist, NeurIPS 2019 (arXiv:1906.02107).
"""

from typing import Any

import torch
from torch import Tensor

from models import BinaryNetwork
from models.layers import Binarize


class Bop(torch.optim.Adam):
    """Adam, and Bop for groups of parameters that have a ``threshold``.

    Their gamma is ``gamma`` times the learning rate, whose schedule it follows. Like the fused Adam
    it takes scaled gradients, leaves all as it is where one is not finite, and waits for nothing.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Adam's own fills in what versions before 1.12 did not save, and asks each state for it.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with all parameters."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if "threshold" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if "threshold" in group:
                self._flip(group)
        return loss

    def _flip(self, group: dict[str, Any]) -> None:
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        gamma = group["gamma"] * group["lr"]
        for weight in group["params"]:
            mean, gradient = self.state[weight]["exp_avg"], weight.grad
            moved = mean.lerp(gradient if scale is None else gradient / scale, gamma)
            # Of a mean that stays, no weight flips: it would have done so before.
            mean.copy_(moved if overflow is None else torch.where(overflow > 0, mean, moved))
            weight.copy_(torch.where(mean * weight > group["threshold"], -weight, weight))


@torch.no_grad()
def drop_latent_weights(model: BinaryNetwork) -> list[Tensor]:
    """Make the binary weights of ``model`` ±1, let gradients pass their sign unchanged, and return
    them."""
    convs = [*model.binary_convs().values()]
    for conv in convs:
        conv.weight.copy_(conv.binarize(conv.signed()))
        conv.binarize = Binarize("ste", weights=True).to(conv.weight)
    return [conv.weight for conv in convs]
