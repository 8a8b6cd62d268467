"""A trained network without torch: what it is, its steps, and its weights as bits and numbers.

``tensors`` holds, by the name of a layer:

    <layer>.bits    uint8 (O, kH, kW, ceil(I / 8)): bit k mod 8 of byte floor(k / 8) is 1 where the
                    weight of input channel k is +1; bits after the last channel are 0
    <layer>.scale   float32 (): mean |w| of the weights behind the bits, as training computed it
    <layer>.norm    float32 (4, C): weight, bias, running mean and running variance
    <layer>.prelu   float32 (2, C): slope and shift of a PReLU
    <layer>.shift   float32 (1, C): what is added before a sign
    <layer>.weight  float32, float16 or int8: (O, I, kH, kW) of a real convolution, (O, I) of a
                    linear layer
    <layer>.unit    float32 (O,), beside an int8 weight: what it is multiplied by
    <layer>.bias    float32 or float16 (O,)

Nothing here imports torch, nor what is not needed to read a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.export.program import Array, Step, Tensors


@dataclass(frozen=True)
class Images:
    """How a network wants its images: the short side made ``resize`` pixels long, the square of
    ``size`` pixels in the middle, and of each colour (pixel / divisor - mean) / std in float32."""

    size: int
    resize: int
    divisor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class About:
    """What a network is, beside its weights.

    ``classes`` are their names in the order of the logits, None where nobody has named them.
    ``accuracy``: metrics in per cent as they were measured on validation images, such as top1.
    ``real``: how real weights are stored. ``commit``: of the code that wrote the file.
    """

    arch: str
    bits: str
    estimator: str
    dataset: str
    classes: tuple[str, ...] | None
    images: Images
    accuracy: Mapping[str, float] = field(default_factory=dict)
    real: str = "float32"
    commit: str = ""


@dataclass(frozen=True)
class Packed:
    """A network: see this file's first lines, and ``pipeline.export.program`` for its steps."""

    about: About
    steps: tuple[Step, ...]
    tensors: Tensors

    @property
    def num_classes(self) -> int:
        return len(self.tensors[f"{self.steps[-1].layer}.weight"])

    def signs(self, step: Step) -> Array:
        """The weights of a binary convolution, int8 (O, I, kH, kW) of -1 and +1."""
        stored, channels = self.tensors[f"{step.layer}.bits"], int(step["channels"])
        bits = np.unpackbits(stored, axis=-1, count=channels, bitorder="little")
        return (2 * bits.astype(np.int8) - 1).transpose(0, 3, 1, 2)

    def weight(self, layer: str) -> Array:
        """The weights of a real layer in float32."""
        stored = self.tensors[f"{layer}.weight"]
        weight = stored.astype(np.float32)
        if stored.dtype == np.int8:
            unit = self.tensors[f"{layer}.unit"]
            weight *= unit.reshape(-1, *[1] * (weight.ndim - 1))
        return weight

    def bias(self, layer: str) -> Array:
        """The bias of a real layer in float32."""
        return self.tensors[f"{layer}.bias"].astype(np.float32)

    def prelu(self, step: Step) -> tuple[Array, Array]:
        """slope and shift of a PReLU, float32 (C,)."""
        slope, shift = self.tensors[f"{step.layer}.prelu"]
        return slope, shift

    def offset(self, step: Step) -> Array:
        """What a shift adds, float32 (C,)."""
        return self.tensors[f"{step.layer}.shift"][0]

    def folded(self, step: Step) -> tuple[Array, Array, Array]:
        """mean, slope and bias of a norm, float32 (C,): y = (u - mean) slope + bias.

        Each number is rounded as ``kernels.norm.running_statistics`` and what follows it round, so
        that an engine that computes u - mean first, and then one fused multiply-add, gets the same
        bits. A scale s, which u lacks, makes the mean m / s and the slope w s / sqrt(v + eps).
        """
        weight, bias, mean, var = self.tensors[f"{step.layer}.norm"]
        rstd = np.float32(1) / np.sqrt(var + np.float32(step["eps"]))
        if "scale" in step.options:
            scale = self.tensors[f"{self.steps[step['scale'] - 1].layer}.scale"]
            mean, rstd = mean / scale, rstd * scale
        return mean, weight * rstd, bias


def pack_signs(signs: Array) -> Array:
    """The bits of weights (O, I, kH, kW), of which 0 and -0 count as +1, as ``tensors`` holds
    them."""
    return np.packbits(signs.transpose(0, 2, 3, 1) >= 0, axis=-1, bitorder="little")


def layers(steps: Sequence[Step], op: str) -> list[str]:
    """The names of the layers of all steps of one kind, each once."""
    return list(dict.fromkeys(step.layer for step in steps if step.op == op))


def plain(about: About) -> dict[str, Any]:
    """``about`` as JSON holds it."""
    images = about.images
    return {
        "arch": about.arch,
        "bits": about.bits,
        "estimator": about.estimator,
        "dataset": about.dataset,
        "classes": None if about.classes is None else list(about.classes),
        "images": {**vars(images), "mean": list(images.mean), "std": list(images.std)},
        "accuracy": dict(about.accuracy),
        "real": about.real,
        "commit": about.commit,
    }
