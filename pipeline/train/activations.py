"""What the signs of activations do to them, from samples of a forward pass."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import binarize, get_estimator
from models import BinaryNetwork
from models.layers import Binarize, NormBinarize


class Activations:
    """Looks at the activations that each sign of ``model`` takes, in each forward pass in training.

    ``names`` holds the modules that take the signs, in their order; one that takes several has a
    number behind its name. Of each map the same number of elements is looked at, at most
    ``samples``.
    """

    def __init__(self, model: BinaryNetwork, samples: int) -> None:
        self.model, self.samples = model, samples
        self.names: list[str] = []
        self.figures: list[Tensor] = []  # of each forward pass since they were taken
        self.maps: dict[str, Tensor] = {}  # of the forward pass under way
        self.sign: Binarize | None = None  # any of them: they share the estimator and its values
        self.hooks = [module.register_forward_hook(hook) for module, hook in self._hooks()]
        self.hooks += [model.register_forward_hook(self._look)] if self.hooks else []

    def take(self) -> Tensor | None:
        """(2, signs), means over the forward passes since the last call, if there were any: the
        mean square of sign(x) - f(x), with the surrogate f of the estimator and its parameters of
        that pass, and the mean of sign(x)."""
        figures, self.figures = self.figures, []
        return torch.stack(figures).mean(0) if figures else None

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def _hooks(self) -> Any:
        for name, module in self.model.named_modules():
            if isinstance(module, NormBinarize):
                if isinstance(module.binarize, Binarize):
                    self.sign = module.binarize
                    yield module, partial(self._note_output, name)
            elif isinstance(module, Binarize) and not module.weights:
                self.sign = module
                yield module, partial(self._note_input, name)

    def _note_output(self, name: str, module: NormBinarize, inputs: Any, pair: Any) -> None:
        assert isinstance(module.binarize, Binarize)
        self._note(name, module.binarize.signed(pair[0]))

    def _note_input(self, name: str, module: Binarize, inputs: Any, output: Any) -> None:
        self._note(name, module.signed(inputs[0]))

    def _note(self, name: str, x: Tensor) -> None:
        if self.model.training:
            again = sum(each.partition("#")[0] == name for each in self.maps)
            self.maps[f"{name}#{again + 1}" if again else name] = x.detach()

    @torch.no_grad()
    def _look(self, *_: Any) -> None:
        if not self.maps:
            return
        assert self.sign is not None and self.names in ([], [*self.maps])
        self.names = [*self.maps]
        x = sample([*self.maps.values()], self.samples).to(self.sign.params.dtype)
        self.maps = {}  # the maps are not kept alive
        sign = binarize(x, self.sign.params, self.sign.estimator)
        error = sign - get_estimator(self.sign.estimator).surrogate(x, self.sign.params)
        self.figures.append(torch.stack([error.square().mean(1), sign.mean(1)]))


def sample(maps: list[Tensor], most: int) -> Tensor:
    """Elements of each of ``maps``, (maps, count), with one count for all, at most ``most``."""
    count = min(most, *(each.numel() for each in maps))
    rows = [each.permute(0, 2, 3, 1) if each.dim() == 4 else each for each in maps]  # as they lie
    return torch.cat([_every(row.reshape(-1), count) for row in rows]).view(len(rows), count)


def _every(flat: Tensor, count: int) -> Tensor:
    """``count`` elements at equal distances, which no channel, row or image is favoured by."""
    distance = flat.numel() // count
    while math.gcd(distance, flat.numel()) > 1:
        distance -= 1
    return flat[: count * distance : distance]
