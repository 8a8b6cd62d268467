"""The two indicators of the paper's equilibrium perspective, over a whole epoch.

Estimating error ``|| sign(z) - f(z) ||_2``, with the surrogate f of the estimator in use and its
current parameters, and gradient stability ``var(|g|)`` over the gradients of one update. Both are
means over the steps of the epoch. For activations the error is per element, a root mean square
over samples, because their number changes with the batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kernels import get_estimator
from kernels.estimators import reste_surrogate
from kernels.reference import sign
from models import BinaryNetwork
from models.layers import Binarize, BinaryConv2d, NormBinarize, Pair


class Indicators:
    """Accumulates the indicators of ``model`` on its device; call ``update`` after backward."""

    def __init__(self, model: BinaryNetwork, *, samples: int, official: bool) -> None:
        self.model, self.samples, self.official = model, samples, official
        self.convs = model.binary_convs()
        self.surrogate = get_estimator(model.estimator).surrogate
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.last_official: dict[str, float] = {}
        own = getattr(model, "binarize", None)  # where a pooling stands before the sign
        signs = {"binarize": (own, own)} | {
            name: (norm, norm.binarize)
            for name, norm in model.named_modules()
            if isinstance(norm, NormBinarize)
        }
        self.hooks = [
            module.register_forward_hook(self._activation(name, sign))
            for name, (module, sign) in signs.items()
            if isinstance(sign, Binarize)
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def _activation(self, name: str, sign: Binarize) -> Any:
        @torch.no_grad()
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | Pair) -> None:
            if not self.model.training:
                return
            y = args[0] if isinstance(output, Tensor) else output[0]  # what was binarized
            x = y.detach().permute(0, 2, 3, 1).reshape(-1)
            sample = x[:: max(1, x.numel() // self.samples)].float()
            error = self._error(sample, sign).square().mean().sqrt()
            self._add(f"activations/{name}", error)

        return hook

    def _error(self, x: Tensor, binarize: Binarize) -> Tensor:
        return sign(x) - self.surrogate(x, binarize.params.to(x.dtype))

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    @torch.no_grad()
    def update(self, *, last: bool) -> None:
        """Add one step; ``last`` says that it is the epoch's last one (the official figures)."""
        self.steps += 1
        gradients = []
        for name, conv in self.convs.items():
            error = self._error(conv.weight, conv.binarize).norm()
            self._add(f"weights/{name}", error)
            gradient = _gradient(conv).abs()
            self._add(f"stability/{name}", gradient.var())
            gradients.append(gradient.flatten())
        if gradients:
            self._add("stability/total", torch.cat(gradients).var())
        if self.official and last:
            self.last_official = self._official()

    def _official(self) -> dict[str, float]:
        # --cal_ind: the last iteration, weights only, the ReSTE curve at o_end whatever the
        # estimator, sums over layers, sign(0) = 0.
        o_end = torch.tensor([self.model.options.get("o_end", 3.0)])
        error = stability = 0.0
        for conv in self.convs.values():
            w = conv.weight
            error += float((w.sign() - reste_surrogate(w, o_end.to(w))).norm())
            stability += float(_gradient(conv).abs().var())
        return {"estimating_error": error, "gradient_stability": stability}

    def record(self) -> dict[str, Any]:
        """The epoch's figures, then start anew. Waits for the device."""
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        result: dict[str, Any] = {"steps": self.steps}
        for kind in ("weights", "activations", "stability"):
            layers = {n.split("/")[1]: v for n, v in means.items() if n.startswith(f"{kind}/")}
            if layers and kind != "stability":
                layers["total"] = sum(v * v for v in layers.values()) ** 0.5
            result[kind] = layers
        if self.official:
            result["official"] = self.last_official
        self.load_state({"sums": {}, "steps": 0, "last_official": {}})
        return result

    def state(self) -> dict[str, Any]:
        """What a checkpoint in mid-epoch needs."""
        return {"sums": self.sums, "steps": self.steps, "last_official": self.last_official}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        device = next(self.model.parameters()).device
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps, self.last_official = state["steps"], state["last_official"]


def _gradient(conv: BinaryConv2d) -> Tensor:
    assert conv.weight.grad is not None
    return conv.weight.grad
