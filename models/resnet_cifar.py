"""The CIFAR-10 networks with residual blocks: resnet20, resnet20_bireal and resnet18_cifar."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BatchNorm, NormBinarize, Pair, binarization, conv3x3, global_pool
from models.network import BinaryNetwork
from models.registry import Arch


class PadShortcut(nn.Module):
    """Option A of He et al. (2015): every second pixel, with zero channels added on both sides."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return _EverySecondPixel.apply(x, self.padding)


class _EverySecondPixel(torch.autograd.Function):
    """x[:, :, ::2, ::2], padded by zero channels.

    The gradient that autograd would derive takes five passes over maps that are not channels_last.
    """

    @staticmethod
    def forward(ctx, x, padding):  # type: ignore[no-untyped-def]
        ctx.like, ctx.padding = x.shape, padding
        chosen = x[:, :, ::2, ::2]
        n, c, h, w = chosen.shape
        y = _zeros(x, (n, c + 2 * padding, h, w))
        y[:, padding : padding + c].copy_(chosen)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        dx = _zeros(dy, ctx.like)
        dx[:, :, ::2, ::2].copy_(dy[:, ctx.padding : ctx.padding + ctx.like[1]])
        return dx, None


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros (N, C, H, W) in channels_last. Of ``torch.empty(...).zero_()``, a graph that
    torch.compile of torch 2.11 makes would lose the gradient."""
    n, c, h, w = shape
    return torch.zeros((n, h, w, c), dtype=like.dtype, device=like.device).permute(0, 3, 1, 2)


def make_shortcut(in_channels: int, channels: int, stride: int, *, project: bool) -> nn.Module:
    """The identity where the shape stays, else option A or, with ``project``, 1x1 conv and BN."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    if project:
        conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        return nn.Sequential(conv, BatchNorm(channels))
    return PadShortcut(channels // 4)


class Block(nn.Module):
    """conv -> ReLU -> BN, twice, with one skip around both or, with ``bireal``, around each."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        bits: str,
        estimator: str,
        project: bool = False,
        bireal: bool = False,
    ) -> None:
        super().__init__()
        conv = partial(conv3x3, bits=bits, estimator=estimator)
        self.bireal = bireal
        self.conv1 = conv(in_channels, channels, stride=stride)
        self.bn1 = NormBinarize(channels, binarization(bits, estimator))
        self.conv2 = conv(channels, channels)
        self.bn2 = NormBinarize(channels, binarization(bits, estimator))
        self.shortcut = make_shortcut(in_channels, channels, stride, project=project)

    def forward(self, pair: Pair) -> Pair:
        x, xb = pair
        residual = self.shortcut(x)
        if self.bireal:
            residual, xb = self.bn1(*self.conv1(xb), residual=residual)
        else:
            _, xb = self.bn1(*self.conv1(xb))
        return self.bn2(*self.conv2(xb), residual=residual)


class FullPrecisionBlock(nn.Module):
    """The classic block: conv -> BN -> ReLU, conv -> BN, skip, ReLU."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, project: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.shortcut = make_shortcut(in_channels, channels, stride, project=project)

    def forward(self, pair: Pair) -> Pair:
        x, _ = pair
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = F.relu(y + self.shortcut(x))
        return y, y


class CifarResNet(BinaryNetwork):
    """(N, 3, H, W) -> logits (N, num_classes), for 32 x 32 images; other sizes work too.

    ``widths`` are the channels of the stages, and ``depth`` is the number of blocks in each.
    ``kaiming`` chooses between Kaiming's initialisation and PyTorch's default.
    """

    def __init__(
        self,
        arch: str,
        bits: str,
        num_classes: int,
        estimator: str,
        *,
        widths: tuple[int, ...] = (16, 32, 64),
        depth: int = 3,
        project: bool = False,
        bireal: bool = False,
        kaiming: bool = True,
        **options: float,
    ) -> None:
        super().__init__(arch, bits, estimator, **options)
        make_block: Callable[..., nn.Module]
        if bits == "32w32a":
            make_block = partial(FullPrecisionBlock, project=project)
        else:
            make_block = partial(
                Block, bits=bits, estimator=estimator, project=project, bireal=bireal
            )
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = NormBinarize(widths[0], binarization(bits, estimator))
        in_channels = widths[0]
        for stage, width in enumerate(widths, start=1):
            strides = [1 if stage == 1 else 2] + [1] * (depth - 1)
            inputs = [in_channels] + [width] * (depth - 1)
            blocks = [make_block(i, width, s) for i, s in zip(inputs, strides, strict=True)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            in_channels = width
        self.stages = [f"layer{stage}" for stage in range(1, len(widths) + 1)]
        self.bn2 = BatchNorm(in_channels)
        self.linear = nn.Linear(in_channels, num_classes)
        if kaiming:
            self.apply(_init)
        if bits != "32w32a":
            last = cast(nn.Sequential, self.get_submodule(self.stages[-1]))
            self.reset_head_binarization(last[-1])
        self.set_progress(0)

    def forward(self, images: Tensor) -> Tensor:
        pair = self.bn1(self.conv1(images))
        for stage in self.stages:
            pair = self.get_submodule(stage)(pair)
        return self.linear(self.bn2(global_pool(pair[0])))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


resnet18 = partial(CifarResNet, widths=(64, 128, 256, 512), depth=2, project=True, kaiming=False)

NETWORKS = (
    Arch("resnet20", CifarResNet, 32, "cifar10"),
    Arch("resnet20_bireal", partial(CifarResNet, bireal=True), 32, "cifar10"),
    Arch("resnet18_cifar", resnet18, 32, "cifar10"),
)
