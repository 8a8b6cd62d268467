"""What a network consists of, for native/engine.py: a list of layers.

Value 0 is the images, (N, C, H, W), and value i what the i-th layer, counted from 1, gives. A layer
reads values that come before it. Arrays are float32 but for binary weights, which are bool.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Norm:
    """y = (u - mean) slope + bias with u = relu(z) or z; each array is (C,).

    u - mean is rounded, and then one fused multiply-add.
    """

    mean: Floats
    slope: Floats
    bias: Floats
    relu: bool


@dataclass(frozen=True)
class Prelu:
    """x where x > 0, else slope x, + shift; each array is (C,). All three are rounded."""

    slope: Floats
    shift: Floats


@dataclass(frozen=True)
class Convolution:
    """prelu(norm(z) + residual), where z is the convolution of a value with ``weight``,
    (O, I, k, k), and real ones add ``bias``, (O,).

    With bool weights, True for +1 and False for -1, the signs of the value are convolved, of which
    that of 0 is +1. Taps beyond the border count nothing. What convolves this layer's signs takes
    those of y + ``offset``, (O,).
    """

    input: int
    weight: Array
    norm: Norm
    stride: int = 1
    padding: int = 0
    residual: int | None = None
    bias: Floats | None = None
    prelu: Prelu | None = None
    offset: Floats | None = None

    @property
    def is_binary(self) -> bool:
        return self.weight.dtype == np.bool_


@dataclass(frozen=True)
class MaxPool:
    """The maxima over windows of ``size`` x ``size``; ``offset`` as in ``Convolution``."""

    input: int
    size: int
    stride: int
    padding: int = 0
    offset: Floats | None = None


@dataclass(frozen=True)
class AvgPool:
    """The means of windows of ``size`` x ``size`` beside each other; with ``ceil`` those that a
    border cuts off too, over what is left of them. Sums are by row and column."""

    input: int
    size: int
    ceil: bool = False


@dataclass(frozen=True)
class Skip:
    """Every second pixel, between ``channels`` channels of zeros before and behind."""

    input: int
    channels: int


@dataclass(frozen=True)
class Mean:
    """(N, C, H, W) -> (N, C), over all pixels."""

    input: int


@dataclass(frozen=True)
class Flatten:
    """(N, C, H, W) -> (N, C H W), in this order."""

    input: int


@dataclass(frozen=True)
class Affine:
    """norm(x) of x (N, C)."""

    input: int
    norm: Norm


@dataclass(frozen=True)
class Linear:
    """x weight' + bias of x (N, I); ``weight`` is (O, I) and ``bias`` (O,)."""

    input: int
    weight: Floats
    bias: Floats


Layer = Convolution | MaxPool | AvgPool | Skip | Mean | Flatten | Affine | Linear


def reads(layer: Layer) -> tuple[int, ...]:
    """The values that a layer reads."""
    residual = getattr(layer, "residual", None)
    return (layer.input,) if residual is None else (layer.input, residual)
