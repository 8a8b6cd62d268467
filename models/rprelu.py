"""The layers that ReActNet adds: a learned shift before the sign, and PReLU with learned shifts.

Both have one number for each channel, which no weight decay should draw to 0.
"""

import torch
from torch import Tensor, nn

from kernels import norm_prelu_binarize
from models.layers import Binarize, NormBinarize, Pair


class RSign(Binarize):
    """sign(x + offset) of (N, C, H, W) with ``estimator``'s gradient."""

    def __init__(self, channels: int, estimator: str) -> None:
        super().__init__(estimator)
        self.offset = nn.Parameter(torch.zeros(channels))

    def signed(self, x: Tensor) -> Tensor:
        return x + self.offset.to(x.dtype).view(-1, 1, 1)

    def undecayed(self) -> list[nn.Parameter]:
        """The parameters that no weight decay should draw to 0."""
        return [self.offset]


def shifted_binarization(bits: str, channels: int, estimator: str) -> nn.Module:
    """The module that makes xb from x: ``RSign`` for activations of 1 bit, else the identity."""
    return RSign(channels, estimator) if bits.endswith("w1a") else nn.Identity()


class NormPReLU(NormBinarize):
    """What stands between two convolutions of ReActNet: y = RPReLU(BN(scale z) + residual), and yb.

    RPReLU(v) is PReLU(v + before) + after. ``forward`` takes z (N, C, H, W), a positive scale,
    0-dim or None for 1, and a residual of z's shape. It returns (y, yb), where ``binarize`` makes
    yb, an ``RSign`` or the identity. All of it is one fused op, ``kernels.norm_prelu_binarize``.
    """

    def __init__(self, channels: int, binarize: nn.Module | None = None) -> None:
        super().__init__(channels, binarize)
        self.before = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.after = nn.Parameter(torch.zeros(channels))

    def forward(  # type: ignore[override]
        self, z: Tensor, scale: Tensor | None, residual: Tensor
    ) -> Pair:
        sign = self.binarize if isinstance(self.binarize, RSign) else None
        return norm_prelu_binarize(
            z,
            self.weight,
            self.bias + self.before,
            *self.statistics(z, scale, relu=False),
            residual,
            self.slope,
            self.after,
            offset=sign.offset if sign else None,
            scale=scale,
            params=sign.params if sign else None,
            estimator=sign.estimator if sign else None,
            training=self.training,
            eps=self.eps,
            sync=self.sync,
        )

    def undecayed(self) -> list[nn.Parameter]:
        """The parameters that no weight decay should draw to 0."""
        return [self.before, self.slope, self.after]
