"""The ops, blocks and convolutions that are timed, at the layer shapes of real networks.

A block is everything between two convolutions: ReLU, batch norm, residual and sign. A stem is what
stands before the first of them: ReLU, batch norm, max-pooling and sign. A convolution
computes z and the statistics of relu(z), forward only: ``conv`` does so by cuDNN and then our
statistics, ``conv_nchw`` and ``conv_padded<n>`` do the same in another layout or with zero channels
up to n, ``conv_int8``, ``conv_fp8`` and ``conv_fp16`` are those of
kernels/candidates/convolution.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.layers import NormPoolBinarize

MODES = ("forward", "backward", "both")
OPERANDS = {
    "conv_int8": torch.int8,
    "conv_fp8": torch.float8_e4m3fn,
    "conv_fp16": torch.float16,
}
PADDED = {"conv_padded32": 32, "conv_padded64": 64}


@dataclass(frozen=True)
class Case:
    """One op or block at one shape, or a convolution from that shape to ``channels`` channels."""

    op: str  # binarize | block | stem | conv | conv_nchw | a key of PADDED or of OPERANDS
    layer: str  # <network>.<layer>
    shape: tuple[int, int, int, int]
    channels: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """What the CSV calls it: <op>/<network>.<layer>/NxCxHxW."""
        return f"{self.op}/{self.layer}/{'x'.join(map(str, self.shape))}"

    @property
    def modes(self) -> tuple[str, ...]:
        return ("forward",) if self.channels else MODES

    def has(self, provider: str) -> bool:
        """Whether ``provider`` does this; each convolution belongs to one provider."""
        return not self.channels or provider == ("ours" if self.op in OPERANDS else "eager")

    def bytes(self, mode: str, itemsize: int) -> int:
        """The bytes that a device must move for this at least, if every pass is perfect.

        ``binarize`` moves x, y forward and dy, x, dx backward; ``block`` moves z, z, residual, y,
        yb forward and dy, dyb, y, z, g, g, z, dz backward; ``stem`` moves z, z forward and z, dz
        backward, of pooled positions x, xb, z forward and dx, dxb, x, z, g, g backward, and each
        way one byte for the place of each; a convolution moves its operands without padding, and
        z, once each.
        """
        n, c, h, w = self.shape
        if self.channels:
            operand = OPERANDS[self.op].itemsize if self.op in OPERANDS else itemsize
            positions = n * -(-h // self.stride) * -(-w // self.stride)
            read = n * c * h * w + self.channels * c * 9
            return read * operand + positions * self.channels * itemsize
        whole, pooled = n * c * h * w, n * c * -(-h // 2) * -(-w // 2)
        forward, backward = {
            "binarize": (2 * whole * itemsize, 3 * whole * itemsize),
            "block": (5 * whole * itemsize, 8 * whole * itemsize),
            "stem": (
                (2 * whole + 3 * pooled) * itemsize + pooled,
                (2 * whole + 6 * pooled) * itemsize + pooled,
            ),
        }[self.op]
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]

    def is_cold(self, mode: str, itemsize: int, cache: int) -> bool:
        """Whether a training step finds what a pass reads in memory, not in ``cache`` bytes of L2.

        A forward pass reads what the op before it has just written, which is still in the cache if
        all that the pass moves fits. A backward pass reads what its forward pass kept, and the
        rest of the network came in between.
        """
        return mode == "backward" or self.bytes("forward", itemsize) > cache


def layers(network: str, model: torch.nn.Module, images: int, size: int) -> list[Case]:
    """The distinct shapes at which ``model`` normalises and binarizes ``images`` images of
    ``size`` pixels, each under the name of the first layer that has it."""
    stems: dict[tuple[int, ...], str] = {}
    blocks: dict[tuple[int, ...], str] = {}
    for name, module, shape in _inputs(model, size):
        if isinstance(module, torch.nn.BatchNorm2d) and ".bn" in f".{name}" and len(shape) == 4:
            shapes = stems if isinstance(module, NormPoolBinarize) else blocks
            shapes.setdefault(shape, name)
    return [
        Case(op, f"{network}.{name}", (images, c, h, w))
        for op, shapes in (("binarize", blocks), ("block", blocks), ("stem", stems))
        for (_, c, h, w), name in shapes.items()
    ]


def convolutions(
    network: str, model: torch.nn.Module, images: int, size: int, ops: list[str]
) -> list[Case]:
    """``ops`` at the distinct 3x3 convolutions of ``model``, each under the name of the first layer
    that has it. The stem, which reads images, is left out, and padding where it changes nothing."""
    found: dict[tuple[tuple[int, ...], int, int], str] = {}
    for name, module, shape in _inputs(model, size):
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and shape[1] > 3:
            found.setdefault((shape, module.out_channels, module.stride[0]), name)
    return [
        Case(op, f"{network}.{name}", (images, c, h, w), channels, stride)
        for op in ops
        for ((_, c, h, w), channels, stride), name in found.items()
        if op not in PADDED or min(c, channels) < PADDED[op]
    ]


def convolution_ops(device: torch.device) -> list[str]:
    """The convolutions that ``device`` can run; prints a line about what a GPU lacks."""
    ops = ["conv", "conv_nchw", *PADDED]
    if device.type != "cuda":
        return ops
    if torch.cuda.get_device_capability(device) >= (8, 9):
        return [*ops, *OPERANDS]
    print("conv_fp8: not timed, since this GPU has no fp8")
    return [*ops, *(op for op in OPERANDS if op != "conv_fp8")]


def _inputs(
    model: torch.nn.Module, size: int
) -> list[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Name, module and shape of its input, for every module in the order of the forward pass of an
    image of ``size`` pixels."""
    seen: list[tuple[str, torch.nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            if isinstance(arguments[0], Tensor):
                seen.append((name, module, tuple(arguments[0].shape)))

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return seen
