"""What an estimator does to a training, layer by layer and epoch by epoch: docs/indicators.md.

The two indicators of the paper's equilibrium perspective are the estimating error
``|| sign(z) - f(z) ||_2``, with the surrogate f of the estimator in use and its present parameters,
and the gradient stability ``var(|g|)`` over the gradients of one update. Beside them stand how many
weights change their sign, how many get no gradient, and how many activations are +1.

What is different in every step is summed up on the device, within the step: nothing waits, and a
captured step does it too. The weights, which move little, are looked at when an epoch is over.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import get_estimator, pack, unpack
from models import BinaryNetwork
from models.layers import BinaryConv2d
from pipeline.run import processes
from pipeline.train.activations import Activations

Figures = dict[str, float]


class Indicators:
    """Watches ``model``, which has binary weights; call ``update`` after each backward pass.

    ``samples``: activations that are looked at per sign and step. ``official``: also compute what
    the official code does. ``skips``: a step with gradients that are not finite is no update, and
    is left out.
    """

    def __init__(
        self, model: BinaryNetwork, *, samples: int, official: bool, skips: bool = False
    ) -> None:
        self.model, self.official, self.skips = model, official, skips
        self.convs = model.binary_convs()
        self.activations = Activations(model, samples)
        self.one = torch.ones((), dtype=torch.float64, device=self._weights()[0].device)
        # Of all steps: 1, (sum |g|)^2 of each layer and of all, sum g^2 of each layer, and the
        # activations' figures. These tensors stay the same, because a captured step adds to them.
        self.totals: Tensor | None = None
        self.latest: Tensor | None = None
        self.signs = self._signs()  # as they were when the epoch began

    @torch.no_grad()
    def _weights(self) -> list[Tensor]:
        return [conv.signed() for conv in self.convs.values()]

    @torch.no_grad()
    def _signs(self) -> list[Tensor]:
        return [pack(conv.binarize(conv.signed())) for conv in self.convs.values()]

    def close(self) -> None:
        """Take the hooks off."""
        self.activations.close()

    @torch.no_grad()
    def update(self) -> None:
        """Add one step."""
        values = self._values()
        if self.totals is None or self.latest is None:
            self.totals, self.latest = torch.zeros_like(values), torch.zeros_like(values)
        if self.skips:
            is_good = values.isfinite().all()
            values = torch.where(is_good, values, 0)
            self.latest.copy_(torch.where(is_good, values, self.latest))
        else:
            self.latest.copy_(values)
        self.totals += values

    def _values(self) -> Tensor:
        gradients = [_gradient(conv) for conv in self.convs.values()]
        first = torch.stack(torch._foreach_norm(gradients, 1)).double()
        second = torch.stack(torch._foreach_norm(gradients, 2)).double()
        norms = torch.cat([first, first.sum()[None], second]).square_()
        figures = self.activations.take()
        seen = [] if figures is None else [figures.flatten().double()]
        return torch.cat([self.one[None], norms, *seen])

    def record(self) -> dict[str, Any]:
        """The figures of the epoch, as plain values; starts anew. Waits for the device, and all
        processes must call it."""
        assert self.totals is not None, "no step was made"
        sums = processes.gather(self.totals).sum(0)
        steps = Steps.of(sums / sums[0].clamp(min=1), self._sizes())
        weights = self._weight_figures(steps.stability)
        activations = steps.activations(self.activations.names)
        result: dict[str, Any] = {
            "steps": round(float(sums[0])) // processes.size(),
            "weights": weights,
            "activations": activations,
            "total": self._totals(weights, activations, steps.total_stability),
        }
        if self.official:
            result["official"] = self._official_figures()
        self.reset()
        return result

    def _sizes(self) -> list[int]:
        return [weight.numel() for weight in self._weights()]

    def _weight_figures(self, stability: list[float]) -> dict[str, Figures]:
        layers = zip(self.convs.items(), self.signs, stability, strict=True)
        return {
            name: {**look_at(conv, signs), "stability": variance}
            for (name, conv), signs, variance in layers
        }

    def _totals(
        self,
        weights: dict[str, Figures],
        activations: dict[str, Figures],
        stability: float,
    ) -> Figures:
        """The figures of all layers together: those of all weights as if they were one layer, and
        the means over the signs of activations."""
        sizes = self._sizes()
        total = {"error": math.hypot(*(layer["error"] for layer in weights.values()))}
        for name in ("flipped", "outside"):
            parts = (n * layer[name] for n, layer in zip(sizes, weights.values(), strict=True))
            total[name] = math.fsum(parts) / sum(sizes)
        total["stability"] = stability
        for name, label in (("error", "activation_error"), ("positive", "positive")):
            if activations:
                values = [sign[name] for sign in activations.values()]
                total[label] = math.fsum(values) / len(values)
        return total

    @torch.no_grad()
    def _official_figures(self) -> Figures:
        """What --cal_ind prints: of the weights and of the gradients of the last update alone, sums
        over layers, the ReSTE curve at o_end whatever the estimator is, and sign(0) = 0."""
        assert self.latest is not None
        o_end = self.one.new_tensor([self.model.options.get("o_end", 3.0)])
        reste = get_estimator("reste").surrogate
        errors = [(w.sign() - reste(w, o_end.to(w.dtype))).norm() for w in self._weights()]
        return {
            "estimating_error": float(torch.stack(errors).double().sum()),
            "gradient_stability": math.fsum(Steps.of(self.latest, self._sizes()).stability),
        }

    def reset(self) -> None:
        """Start an epoch, in the same tensors, from the weights as they are."""
        for tensor in self.tensors():
            tensor.zero_()
        self.signs = self._signs()

    def tensors(self) -> list[Tensor]:
        """All tensors that ``update`` writes."""
        return [each for each in (self.totals, self.latest) if each is not None]

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs. All processes must call it."""
        totals = None if self.totals is None else processes.gather(self.totals)
        names = self.activations.names
        return {"totals": totals, "latest": self.latest, "names": names, "signs": self.signs}

    def load_state(self, state: dict[str, Any]) -> bool:
        """Take over what ``state`` gave and return True; where it is of another version, start an
        epoch."""
        self.reset()
        if state.keys() != self.state().keys():
            return False
        self.activations.names = list(state["names"])
        self.signs = [signs.to(self.one.device) for signs in state["signs"]]
        if state["totals"] is not None:
            self.totals = processes.share(state["totals"]).to(self.one.device)
            self.latest = state["latest"].to(self.one.device).clone()
        return True


class Steps(NamedTuple):
    """Means over steps: the variance of |g| of each layer and over all layers, and of each sign of
    activations the mean square of the error and the mean of the sign."""

    stability: list[float]
    total_stability: float
    errors: list[float]
    signs: list[float]

    @classmethod
    def of(cls, means: Tensor, sizes: list[int]) -> "Steps":
        """From the ``means`` of what ``update`` sums up, for layers of these ``sizes``."""
        n, count = len(sizes), (len(means) - 2 - 2 * len(sizes)) // 2
        parts = [part.tolist() for part in means.split([1, n, 1, n, count, count])]
        _, first, (all_first,), second, errors, signs = parts
        layers = [variance(*each) for each in zip(first, second, sizes, strict=True)]
        return cls(layers, variance(all_first, math.fsum(second), sum(sizes)), errors, signs)

    def activations(self, names: list[str]) -> dict[str, Figures]:
        """The figures of each sign of activations."""
        return {
            name: {"error": math.sqrt(error), "positive": (1 + sign) / 2}
            for name, error, sign in zip(names, self.errors, self.signs, strict=True)
        }


def variance(first: float, second: float, size: int) -> float:
    """The variance of ``size`` numbers whose sum has the square ``first`` and whose squares have
    the sum ``second``."""
    return max(second - first / size, 0.0) / (size - 1)


@torch.no_grad()
def look_at(conv: BinaryConv2d, signs: Tensor) -> Figures:
    """The figures of the weights of ``conv`` as they are, which had the packed ``signs``."""
    weight = conv.signed()
    now = conv.binarize(weight)
    params, estimator = conv.binarize.params, get_estimator(conv.binarize.estimator)
    error = now - estimator.surrogate(weight, params)
    is_same = unpack(pack(now) ^ signs, weight.shape, weight.stride(), weight.dtype) < 0
    return {
        "error": float(torch.linalg.vector_norm(error)),
        "flipped": 1 - _share(is_same),
        "outside": _share(estimator.factor(weight, params) == 0),
    }


def _share(is_so: Tensor) -> float:
    return int(is_so.sum()) / is_so.numel()


def _gradient(conv: BinaryConv2d) -> Tensor:
    assert conv.weight.grad is not None
    return conv.weight.grad
