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
from models import BinaryNetwork
from models.layers import Binarize, BinaryConv2d, NormBinarize, Pair

OFFICIAL = ("estimating_error", "gradient_stability")


class Indicators:
    """Accumulates the indicators of ``model`` on its device; call ``update`` after backward.

    ``parts``: how often a step calls the model.
    """

    def __init__(
        self, model: BinaryNetwork, *, samples: int, official: bool, parts: int = 1
    ) -> None:
        self.model, self.samples, self.official, self.parts = model, samples, official, parts
        self.convs = model.binary_convs()
        self.surrogate = get_estimator(model.estimator).surrogate
        device = next(model.parameters()).device
        # These tensors stay the same, because a captured step adds to them.
        self.sums: dict[str, Tensor] = {}
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.last_official = torch.zeros(len(OFFICIAL), dtype=torch.float64, device=device)
        # The official --cal_ind takes the ReSTE curve at o_end, whatever the estimator is.
        self.o_end = torch.tensor([model.options.get("o_end", 3.0)], device=device)
        own = getattr(model, "binarize", None)  # of networks that pool before they take the sign
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
            self._add(f"activations/{name}", error / self.parts)

        return hook

    def _error(self, x: Tensor, binarize: Binarize) -> Tensor:
        # Not by a call of the module, whose hook this may be.
        sign = binarize.forward(x)
        return sign - self.surrogate(x, binarize.params.to(x.dtype))

    def _add(self, name: str, value: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(value, dtype=torch.float64)
        self.sums[name] += value

    @torch.no_grad()
    def update(self) -> None:
        """Add one step."""
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
        if self.official and gradients:
            self.last_official.copy_(self._official())

    def _official(self) -> Tensor:
        # The official --cal_ind looks at weights only, sums over layers, and has sign(0) = 0. Each
        # step overwrites the one before, so that an epoch keeps its last step.
        weights = [conv.weight for conv in self.convs.values()]
        reste = get_estimator("reste").surrogate
        errors = [(w.sign() - reste(w, self.o_end.to(w.dtype))).norm() for w in weights]
        stability = [_gradient(conv).abs().var() for conv in self.convs.values()]
        return torch.stack([torch.stack(each).double().sum() for each in (errors, stability)])

    def record(self) -> dict[str, Any]:
        """The figures of the epoch, as plain values; starts anew. Waits for the device."""
        steps = int(self.steps)
        means = {name: float(total) / steps for name, total in self.sums.items()}
        result: dict[str, Any] = {"steps": steps}
        for kind in ("weights", "activations", "stability"):
            layers = {n.split("/")[1]: v for n, v in means.items() if n.startswith(f"{kind}/")}
            if layers and kind != "stability":
                layers["total"] = sum(v * v for v in layers.values()) ** 0.5
            result[kind] = layers
        if self.official:
            result["official"] = dict(zip(OFFICIAL, self.last_official.tolist(), strict=True))
        self.reset()
        return result

    def reset(self) -> None:
        """Start anew, in the same tensors."""
        for tensor in self.tensors():
            tensor.zero_()

    def tensors(self) -> list[Tensor]:
        """All tensors that ``update`` adds to."""
        return [*self.sums.values(), self.steps, self.last_official]

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs."""
        return {"sums": self.sums, "steps": self.steps, "last_official": self.last_official}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.reset()
        for name, value in state["sums"].items():
            self._add(name, value.to(self.steps.device))
        self.steps.copy_(state["steps"])
        self.last_official.copy_(state["last_official"])


def _gradient(conv: BinaryConv2d) -> Tensor:
    assert conv.weight.grad is not None
    return conv.weight.grad
