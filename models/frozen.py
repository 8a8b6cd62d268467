"""Binary convolutions as they come from a packed file: their signs and scale stored, not made."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.network import BinaryNetwork


class FrozenConv2d(nn.Conv2d):
    """A ``BinaryConv2d`` for evaluation, of which only ``signs`` (O, I, 3, 3) and ``scale``, 0-dim,
    are left.

    The scale is kept as it was computed in training, because the mean of |w| of weights that were
    rebuilt from it may be another number in its last bit.
    """

    scale: Tensor

    def __init__(self, signs: Tensor, scale: Tensor, stride: tuple[int, int]) -> None:
        channels, in_channels, *size = signs.shape
        super().__init__(in_channels, channels, tuple(size), stride, padding=1, bias=False)  # type: ignore[arg-type]
        laid_out = signs.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(laid_out, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, xb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self._conv_forward(xb, self.weight, None), self.scale


def freeze(network: BinaryNetwork, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put a ``FrozenConv2d`` with the signs and scale of ``layers`` in the place of each binary
    convolution, which are named there."""
    for name, conv in network.binary_convs().items():
        signs, scale = layers[name]
        if signs.shape != conv.weight.shape:
            raise ValueError(f"{name} has weights of another shape")
        stride = conv.stride[0], conv.stride[1]
        network.set_submodule(name, FrozenConv2d(signs, scale, stride))
