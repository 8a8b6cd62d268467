"""The layers of the networks: binarization, binary convolution, and what stands between two.

Inside a network every feature map travels as a pair ``(x, xb)``. x is the real stream, which skips
add to. xb is what the next convolution reads: sign(x) where activations have 1 bit, else x itself.
A block does this twice:

    z, scale = self.conv1(xb)
    x, xb = self.bn1(z, scale, residual=x)
"""

from typing import cast

import torch
from torch import Tensor, nn

from kernels import (
    batch_statistics,
    binarize,
    binarize_weights,
    convolve,
    get_estimator,
    get_transform,
    joined,
    norm_binarize,
    norm_pool_binarize,
    running_statistics,
)

BITS = ("1w1a", "1w32a", "32w1a", "32w32a")

Pair = tuple[Tensor, Tensor]


class Binarize(nn.Module):
    """sign(x) with ``estimator``'s gradient; shape, dtype and memory format stay x's.

    An estimator of weights alone brings the one that activations take.

    ``params`` is a buffer outside of the ``state_dict``. It holds the estimator's parameters for
    weights, if ``weights``, or for activations: at first those of the beginning of a training, then
    those that a network's ``set_progress`` fills in.
    """

    params: Tensor

    def __init__(self, estimator: str, *, weights: bool = False) -> None:
        super().__init__()
        entry = get_estimator(estimator) if weights else get_estimator(estimator).of_activations
        self.estimator, self.weights = entry.name, weights
        schedule = entry.schedule if weights else entry.activation_schedule or entry.schedule
        self.register_buffer("params", torch.tensor(schedule(0.0)), persistent=False)

    def forward(self, x: Tensor, xb: Tensor | None = None) -> Tensor:
        """sign(x), which is ``xb`` where an op has made that together with x."""
        return binarize(self.signed(x), self.params, self.estimator) if xb is None else xb

    def signed(self, x: Tensor) -> Tensor:
        """What the sign is taken of."""
        return x

    def extra_repr(self) -> str:
        return self.estimator


class WeightTransform(nn.Module):
    """The transform ``name`` of ``kernels.TRANSFORMS``: what is done to a weight before its sign.

    ``params``, a buffer outside of the ``state_dict``, holds its parameters: at first those of the
    beginning of a training, then those that a network's ``set_progress`` fills in.
    """

    params: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("params", torch.tensor(get_transform(name).schedule(0.0)), False)

    def forward(self, weight: Tensor) -> Tensor:
        return get_transform(self.name).apply(weight, self.params)

    def extra_repr(self) -> str:
        return self.name


class BinaryConv2d(nn.Conv2d):
    """Convolution of ``xb`` (N, C, H, W) with sign(w), and the layer's scale mean |w|, 0-dim.

    With a ``transform``, w is not the weight itself but what that makes of it.

    The scale is handed on rather than multiplied in: sums of ±1 are small integers, which are exact
    in fp32 in whatever order they are added, while sums of ±scale are not. Border taps are 0,
    because padding comes after binarization.

    In a ``BinaryNetwork``, ``binarized`` already holds sign(w) and the scale when ``forward`` is
    called, or the first convolution of ``together`` to be called makes those of all of them. Alone,
    the convolution makes its own.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, estimator: str = "reste"
    ) -> None:
        super().__init__(in_channels, channels, 3, stride, padding=1, bias=False)
        self.binarize = Binarize(estimator, weights=True)
        self.transform: WeightTransform | None = None
        self.binarized: tuple[Tensor, Tensor] | None = None
        self.together: list[BinaryConv2d] = []

    def signed(self) -> Tensor:
        """The weight of which the sign is convolved."""
        return self.weight if self.transform is None else self.transform(self.weight)

    def forward(self, xb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if self.binarized is None:
            binarize_convs(self.together or [self])
        assert self.binarized is not None
        (weight, scale), self.binarized = self.binarized, None
        return convolve(xb, weight, self.stride[0]), scale


def binarize_convs(convs: list[BinaryConv2d]) -> None:
    """Give every convolution its scale and its sign(w), in the dtype that it convolves in."""
    first = convs[0]
    device = first.weight.device.type
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else first.weight.dtype
    weights = [conv.signed() for conv in convs]
    if first.transform is not None:
        weights = joined(weights)
    signs, scales = binarize_weights(
        weights, first.binarize.params, first.binarize.estimator, dtype
    )
    for conv, sign, scale in zip(convs, signs, scales, strict=True):
        conv.binarized = sign, scale


class RealConv2d(nn.Conv2d):
    """The full-precision stand-in for ``BinaryConv2d``; its scale is None.

    With an ``estimator`` whose binary weights are signs of f(w), with its surrogate f, f(w) is
    convolved in place of w. A training of such weights is the first of two steps: what it learns
    are the values whose signs are the weights of the second.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, estimator: str | None = None
    ) -> None:
        super().__init__(in_channels, channels, 3, stride, padding=1, bias=False)
        has_wave = estimator and get_estimator(estimator).triton_surrogate
        self.binarize = Binarize(estimator, weights=True) if estimator and has_wave else None

    def convolved(self) -> Tensor:
        """The weight that is convolved: w, or f(w)."""
        if self.binarize is None:
            return self.weight
        entry = get_estimator(self.binarize.estimator)
        return entry.surrogate(self.weight, self.binarize.params)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return self._conv_forward(x, self.convolved(), None), None


def conv3x3(
    in_channels: int, channels: int, *, bits: str, estimator: str, stride: int = 1
) -> BinaryConv2d | RealConv2d:
    """The 3x3 convolution of a ``bits`` network, without bias."""
    if bits.startswith("32w"):
        weights = estimator if bits == "32w1a" else None
        return RealConv2d(in_channels, channels, stride=stride, estimator=weights)
    return BinaryConv2d(in_channels, channels, stride=stride, estimator=estimator)


def global_pool(x: Tensor) -> Tensor:
    """The mean of every channel, (N, C, H, W) -> (N, C), with a gradient that is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


def binarization(bits: str, estimator: str) -> nn.Module:
    """The module that makes xb from x: ``Binarize`` for activations of 1 bit, else the identity."""
    return Binarize(estimator) if bits.endswith("w1a") else nn.Identity()


class NormBinarize(nn.BatchNorm2d):
    """What stands between two convolutions: y = BN(relu(scale z)) + residual, and yb from y.

    ``forward`` takes z (N, C, H, W), a positive scale, 0-dim or None for 1, and a residual of z's
    shape or None. It returns (y, yb), where ``binarize`` makes yb (see ``binarization``). All of it
    is one fused op, ``kernels.norm_binarize``.
    """

    def __init__(self, channels: int, binarize: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.binarize = binarize or nn.Identity()
        self.sync = False  # whether the statistics are over the batches of all processes

    def forward(  # type: ignore[override]
        self, z: Tensor, scale: Tensor | None = None, residual: Tensor | None = None
    ) -> Pair:
        return self.norm_binarize(z, scale, residual, relu=True)

    def norm_binarize(
        self, z: Tensor, scale: Tensor | None, residual: Tensor | None, *, relu: bool
    ) -> Pair:
        """(y, yb), with or without the ReLU."""
        sign = self.binarize if isinstance(self.binarize, Binarize) else None
        return norm_binarize(
            z,
            self.weight,
            self.bias,
            *self.statistics(z, scale, relu=relu),
            scale=scale,
            residual=residual,
            params=sign.params if sign else None,
            estimator=sign.estimator if sign else None,
            training=self.training,
            eps=self.eps,
            relu=relu,
            sync=self.sync,
        )

    def statistics(self, z: Tensor, scale: Tensor | None, *, relu: bool) -> tuple[Tensor, Tensor]:
        """mean and rstd of relu(z): the batch's in training, else the running ones."""
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and batches is not None
        if not self.training:
            return running_statistics(mean, var, scale=scale, eps=self.eps)
        momentum = cast(float, self.momentum)
        options = {"momentum": momentum, "eps": self.eps, "relu": relu, "sync": self.sync}
        return batch_statistics(z, mean, var, batches, scale=scale, **options)  # type: ignore[arg-type]


class NormPoolBinarize(NormBinarize):
    """What stands between a real stem and a binary convolution: x = max_pool(BN(relu(z))), and xb.

    Without ``relu`` it is batch norm of z itself.

    ``forward`` takes z (N, C, H, W) and the module that makes xb from x (see ``binarization``),
    whose hooks see x, and returns (x, xb). The windows are 3 x 3 at stride 2 with padding 1. All of
    it is one fused op, ``kernels.norm_pool_binarize``.
    """

    def __init__(self, channels: int, *, relu: bool = True) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, z: Tensor, binarize: nn.Module) -> Pair:  # type: ignore[override]
        sign = binarize if type(binarize) is Binarize else None  # others do more than that
        x, xb = norm_pool_binarize(
            z,
            self.weight,
            self.bias,
            *self.statistics(z, None, relu=self.relu),
            params=sign.params if sign else None,
            estimator=sign.estimator if sign else None,
            training=self.training,
            relu=self.relu,
            sync=self.sync,
        )
        return x, sign(x, xb) if sign else binarize(x)


class BatchNorm(NormBinarize):
    """Batch norm of (N, C, H, W) or (N, C), without scale, ReLU, residual or sign."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.norm_binarize(x, None, None, relu=False)[0]
