"""A network as a list of steps, with which a program without torch can run it.

Value 0 is the images, (N, 3, H, W), and value i what the i-th step, counted from 1, gives; the last
one is the logits, (N, classes). A step reads values that come before it:

    conv      in [x]      z = x * weight, the convolution of ``layer``: ``stride``, ``padding``. One
                          that has bits gives sums of ±1 without its scale; ``channels`` are those
                          of x. Taps beyond the border count nothing. + bias of ``layer``, if
                          ``bias``. A real one may have ``groups`` and ``dilation``
    norm      in [z, r?]  y = (u - mean) slope + bias + r, with u = relu(z) if ``relu``, else z, and
                          the statistics of ``layer`` (see ``Packed.folded``): ``eps``, and in
                          ``scale``, if z still lacks one, the value of the convolution that has it
    prelu     in [x]      y + shift of ``layer``, where y is x if x > 0, else slope x
    shift     in [x]      x + offset of ``layer``
    sign      in [x]      +1 where x >= 0, so for 0 and -0 too, else -1
    relu      in [x]      max(x, 0)
    add       in [x, y]   x + y
    max_pool  in [x]      maxima over windows of ``size``: ``stride``, ``padding``
    avg_pool  in [x]      means of windows of ``size`` beside each other; with ``ceil`` those that
                          a border cuts off too, over what is left of them
    skip      in [x]      every second pixel, between ``channels`` zero channels before and behind
    mean      in [x]      (N, C, H, W) -> (N, C), over all pixels
    flatten   in [x]      (N, C, H, W) -> (N, C H W), in this order
    linear    in [x]      x weight' + bias of ``layer``

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Shape = tuple[int, ...]  # of one image's value: (C, H, W) or (C,)

MOST_STEPS = 10_000
MOST_SIDE = 2**14  # pixels of an image
MOST_ELEMENTS = 2**31  # of one image's value

# The options of each kind of step and their types, and how many values it reads.
_OPTIONS: dict[str, dict[str, type]] = {
    "conv": {"layer": str, "bias": bool}
    | dict.fromkeys(("stride", "padding", "channels", "groups", "dilation"), int),
    "norm": {"layer": str, "relu": bool, "eps": float, "scale": int},
    "prelu": {"layer": str},
    "shift": {"layer": str},
    "sign": {},
    "relu": {},
    "add": {},
    "max_pool": {"size": int, "stride": int, "padding": int},
    "avg_pool": {"size": int, "ceil": bool},
    "skip": {"channels": int},
    "mean": {},
    "flatten": {},
    "linear": {"layer": str},
}
_READS = {"norm": (1, 2), "add": (2,)}  # all others read 1
_OPTIONAL = {"channels", "bias", "groups", "dilation", "scale"}  # of conv and norm


@dataclass(frozen=True)
class Step:
    """One operation: its kind, the numbers of the values that it reads, and its options by name."""

    op: str
    inputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    @property
    def layer(self) -> str:
        """The layer whose tensors it uses; empty where it uses none."""
        return self.options.get("layer", "")

    @property
    def is_binary(self) -> bool:
        """Whether it is a convolution whose weights are bits."""
        return self.op == "conv" and "channels" in self.options

    @property
    def has_bias(self) -> bool:
        """Whether it adds its layer's bias."""
        return self.op == "linear" or bool(self.options.get("bias"))

    @property
    def groups(self) -> int:
        """In how many parts a convolution takes its channels."""
        return int(self.options.get("groups", 1))

    @property
    def dilation(self) -> int:
        """How many pixels the taps of a convolution are apart."""
        return int(self.options.get("dilation", 1))


def to_plain(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as JSON holds them."""
    return [{"op": step.op, "in": list(step.inputs), **step.options} for step in steps]


def from_plain(values: Any) -> tuple[Step, ...]:
    """The steps in what JSON held; raises ValueError, with a reason, where they are none."""
    if not isinstance(values, list) or not 0 < len(values) <= MOST_STEPS:
        raise ValueError("its steps are no list")
    steps = tuple(_step(place, value) for place, value in enumerate(values, start=1))
    for place, step in enumerate(steps, start=1):
        scale = step.options.get("scale")
        if scale is not None and not (0 < scale < place and steps[scale - 1].is_binary):
            raise ValueError(f"step {place} takes the scale of what has none")
    return steps


def _step(place: int, value: Any) -> Step:
    options = dict(value) if isinstance(value, dict) else {}
    op, inputs = options.pop("op", None), options.pop("in", None)
    if not isinstance(op, str) or op not in _OPTIONS:
        raise ValueError(f"step {place} is of no known kind")
    if not isinstance(inputs, list) or len(inputs) not in _READS.get(op, (1,)):
        raise ValueError(f"step {place} reads no values")
    if not all(type(each) is int and 0 <= each < place for each in inputs):
        raise ValueError(f"step {place} reads what does not come before it")
    known = _OPTIONS[op]
    needed = known.keys() - (_OPTIONAL if op in ("conv", "norm") else set())
    if not needed <= options.keys() <= known.keys():
        raise ValueError(f"step {place} has other options than a {op}")
    if not all(_is_option(known[name], each) for name, each in options.items()):
        raise ValueError(f"step {place} has an impossible option")
    return Step(op, tuple(inputs), options)


def _is_option(kind: type, value: Any) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < 2**16
    if kind is float:
        return type(value) is float and 0 <= value < 1
    return type(value) is kind


def shapes(steps: Sequence[Step], tensors: Tensors, height: int, width: int) -> list[Shape]:
    """The shape of every value, without the batch, for images of this size; the first is theirs.

    Raises ValueError, with a reason, where a step does not fit what it reads: then it must not be
    run.
    """
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        raise ValueError(f"images of {width} x {height} pixels are none")
    found: list[Shape] = [(3, height, width)]
    for place, step in enumerate(steps, start=1):
        try:
            shape = _SHAPES[step.op](step, tensors, [found[each] for each in step.inputs])
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"step {place}, {step.op} {step.layer}, does not fit") from None
        if min(shape) < 1 or np.prod(shape, dtype=float) > MOST_ELEMENTS:
            raise ValueError(f"step {place}, {step.op} {step.layer}, has no size")
        found.append(shape)
    return found


def _fits(*conditions: bool) -> None:
    if not all(conditions):
        raise ValueError


def _window(side: int, size: int, stride: int, padding: int) -> int:
    _fits(stride > 0, size > padding)
    return (side + 2 * padding - size) // stride + 1


def _conv(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, height, width),) = read
    if step.is_binary:
        count, tall, wide, octets = tensors[f"{step.layer}.bits"].shape
        _fits(step["channels"] == channels, octets == (channels + 7) // 8, not step.has_bias)
        _fits(step.groups == step.dilation == 1)
    else:
        count, inputs, tall, wide = tensors[f"{step.layer}.weight"].shape
        _fits(step.groups > 0, step.dilation > 0)
        _fits(inputs * step.groups == channels, count % step.groups == 0)
        _fits(not step.has_bias or tensors[f"{step.layer}.bias"].shape == (count,))
    tall, wide = (step.dilation * (size - 1) + 1 for size in (tall, wide))
    move = step["stride"], step["padding"]
    return count, _window(height, tall, *move), _window(width, wide, *move)


def _norm(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    _fits(tensors[f"{step.layer}.norm"].shape == (4, read[0][0]), len({*read}) == 1)
    return read[0]


def _prelu(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    _fits(tensors[f"{step.layer}.prelu"].shape == (2, read[0][0]))
    return read[0]


def _shift(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    _fits(tensors[f"{step.layer}.shift"].shape == (1, read[0][0]))
    return read[0]


def _same(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    _fits(len({*read}) == 1)
    return read[0]


def _max_pool(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, height, width),) = read
    move = step["size"], step["stride"], step["padding"]
    return channels, _window(height, *move), _window(width, *move)


def _avg_pool(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, height, width),) = read
    _fits(step["size"] > 0)
    reach = step["size"] - 1 if step["ceil"] else 0
    return channels, (height + reach) // step["size"], (width + reach) // step["size"]


def _skip(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, height, width),) = read
    return channels + 2 * step["channels"], (height + 1) // 2, (width + 1) // 2


def _mean(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, _, _),) = read
    return (channels,)


def _flatten(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    ((channels, height, width),) = read
    return (channels * height * width,)


def _linear(step: Step, tensors: Tensors, read: list[Shape]) -> Shape:
    count, inputs = tensors[f"{step.layer}.weight"].shape
    _fits(read[0] == (inputs,), tensors[f"{step.layer}.bias"].shape == (count,))
    return (count,)


_SHAPES = {
    "conv": _conv, "norm": _norm, "prelu": _prelu, "shift": _shift, "sign": _same, "relu": _same,
    "add": _same, "max_pool": _max_pool, "avg_pool": _avg_pool, "skip": _skip, "mean": _mean,
    "flatten": _flatten, "linear": _linear,
}  # fmt: skip
