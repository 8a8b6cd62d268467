"""A packed network as the layers of native/engine.py.

Nothing here imports torch.
"""

from dataclasses import replace

import numpy as np

from native.layers import (
    Affine,
    AvgPool,
    Convolution,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Mean,
    Norm,
    Prelu,
    Skip,
)
from pipeline.export.packed import Packed
from pipeline.export.program import Step


def fused(packed: Packed) -> list[Layer]:
    """Its layers: a convolution takes the norm behind it, and signs are part of what reads them.

    Raises ValueError, with a reason, for a network that has other layers.
    """
    return _Fusion(packed).layers


class _Fusion:
    """``layers``: the steps of ``packed``, joined. A value's number is that of its step."""

    def __init__(self, packed: Packed) -> None:
        self.packed, self.layers = packed, list[Layer]()
        self.numbers = {0: 0}  # of the engine's values, by those of steps
        self.convolved: dict[int, Step] = {}  # the convolutions, which wait for their norms
        self.signed: set[int] = set()  # the values that are signs
        self.shifted: set[int] = set()  # those of which only signs are taken
        for place, step in enumerate(packed.steps, start=1):
            self._add(place, step)

    def _add(self, place: int, step: Step) -> None:
        if step.op == "conv":
            self.convolved[place] = step
        elif step.op == "sign":
            self.signed.add(place)
            self.numbers[place] = self._signed(step)
        elif step.op in ("shift", "prelu"):
            self.numbers[place] = self._value(step)
            self._join(place, step)
        else:
            self.layers.append(self._layer(step))
            self.numbers[place] = len(self.layers)

    def _value(self, step: Step, which: int = 0) -> int:
        place = step.inputs[which]
        if place in self.signed | self.shifted or place not in self.numbers:
            raise ValueError(f"its {step.op} {step.layer} reads what the engine does not keep")
        return self.numbers[place]

    def _signed(self, step: Step) -> int:
        """The value of the engine whose signs a step takes, shifted or not."""
        (place,) = step.inputs
        number = self.numbers[place] if place in self.shifted else self._value(step)
        offset = getattr(self.layers[number - 1], "offset", None) if number else None
        if (offset is not None) != (place in self.shifted):
            raise ValueError("the signs of a value are taken twice, with another shift")
        return number

    def _join(self, place: int, step: Step) -> None:
        """Make a shift or a PReLU part of the last layer, whose value nobody else may have read."""
        number, layer = self.numbers[place], self.layers[-1] if self.layers else None
        is_read = number in {self.numbers[each] for each in self.signed | self.shifted}
        if number == len(self.layers) and not is_read:
            if step.op == "shift" and isinstance(layer, Convolution | MaxPool):
                self.layers[-1] = replace(layer, offset=self.packed.offset(step))
                self.shifted.add(place)
                return
            if isinstance(layer, Convolution) and step.op == "prelu" and layer.prelu is None:
                self.layers[-1] = replace(layer, prelu=Prelu(*self.packed.prelu(step)))
                del self.numbers[step.inputs[0]]
                return
        raise ValueError(f"its {step.op} {step.layer} joins no layer of the engine")

    def _layer(self, step: Step) -> Layer:
        if step.op == "norm":
            return self._norm(step)
        if step.op == "max_pool":
            return MaxPool(self._value(step), step["size"], step["stride"], step["padding"])
        if step.op == "avg_pool":
            return AvgPool(self._value(step), step["size"], step["ceil"])
        if step.op == "skip":
            return Skip(self._value(step), step["channels"])
        if step.op == "mean":
            return Mean(self._value(step))
        if step.op == "flatten":
            return Flatten(self._value(step))
        if step.op == "linear":
            weight, bias = self.packed.weight(step.layer), self.packed.bias(step.layer)
            return Linear(self._value(step), weight, bias)
        raise ValueError(f"the engine has no {step.op}")

    def _norm(self, step: Step) -> Layer:
        with np.errstate(invalid="ignore", divide="ignore"):  # the engine refuses what that gives
            norm = Norm(*self.packed.folded(step), relu=step["relu"])
        conv = self.convolved.get(step.inputs[0])
        if conv is None:
            return Affine(self._value(step), norm)
        residual = self._value(step, 1) if len(step.inputs) > 1 else None
        move = norm, conv["stride"], conv["padding"], residual
        if not conv.is_binary:
            if conv.groups > 1 or conv.dilation > 1:
                raise ValueError(f"{conv.layer} has groups or dilation")
            bias = self.packed.bias(conv.layer) if conv.has_bias else None
            return Convolution(self._value(conv), self.packed.weight(conv.layer), *move, bias)
        source = conv.inputs[0]
        if source not in self.signed:
            raise ValueError(f"{conv.layer} convolves what is not binary")
        return Convolution(self.numbers[source], self.packed.signs(conv) > 0, *move)
