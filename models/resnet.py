"""The ImageNet networks resnet18 and resnet34: a skip around every convolution (Bi-Real)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from models.layers import (
    BatchNorm,
    NormBinarize,
    NormPoolBinarize,
    Pair,
    binarization,
    conv3x3,
    global_pool,
)
from models.network import BinaryNetwork
from models.registry import Arch


class Block(nn.Module):
    """conv -> ReLU -> BN -> + skip, twice; the first skip goes through ``downsample``, if any.

    With ``bits`` 32w32a the order is the same and the convolutions are real.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, bits: str, estimator: str
    ) -> None:
        super().__init__()
        conv = partial(conv3x3, bits=bits, estimator=estimator)
        self.conv1 = conv(in_channels, channels, stride=stride)
        self.bn1 = NormBinarize(channels, binarization(bits, estimator))
        self.conv2 = conv(channels, channels)
        self.bn2 = NormBinarize(channels, binarization(bits, estimator))
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            project = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, BatchNorm(channels))

    def forward(self, pair: Pair) -> Pair:
        x, xb = pair
        residual = x if self.downsample is None else self.downsample(x)
        x, xb = self.bn1(*self.conv1(xb), residual=residual)
        return self.bn2(*self.conv2(xb), residual=x)


class ResNet(BinaryNetwork):
    """(N, 3, H, W) -> logits (N, num_classes), for images of at least 32 x 32.

    ``depths`` are the numbers of blocks in the four stages.
    """

    def __init__(
        self,
        arch: str,
        bits: str,
        num_classes: int,
        estimator: str,
        *,
        depths: tuple[int, int, int, int],
        **options: float,
    ) -> None:
        super().__init__(arch, bits, estimator, **options)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = NormPoolBinarize(64)
        self.binarize = binarization(bits, estimator)
        make_block = partial(Block, bits=bits, estimator=estimator)
        self.layer1 = make_stage(make_block, 64, 64, depths[0], stride=1)
        self.layer2 = make_stage(make_block, 64, 128, depths[1], stride=2)
        self.layer3 = make_stage(make_block, 128, 256, depths[2], stride=2)
        self.layer4 = make_stage(make_block, 256, 512, depths[3], stride=2)
        self.bn2 = BatchNorm(512)
        self.fc = nn.Linear(512, num_classes)
        self.reset_head_binarization(self.layer4[-1])
        self.apply(init_convs)
        self.set_progress(0)

    def forward(self, images: Tensor) -> Tensor:
        pair = self.bn1(self.conv1(images), self.binarize)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            pair = layer(pair)
        return self.fc(self.bn2(global_pool(pair[0])))


def make_stage(
    make_block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    channels: int,
    depth: int,
    *,
    stride: int,
) -> nn.Sequential:
    """``depth`` blocks, of which the first changes channels and has the stride.

    ``make_block`` is called with the channels that come in, those that go out, and the stride.
    """
    first = make_block(in_channels, channels, stride)
    return nn.Sequential(first, *(make_block(channels, channels, 1) for _ in range(depth - 1)))


def init_convs(module: nn.Module) -> None:
    """Kaiming's initialisation of a convolution, for ReLU; leaves other modules alone."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


NETWORKS = (
    Arch("resnet18", partial(ResNet, depths=(2, 2, 2, 2)), 224, "imagenet"),
    Arch("resnet34", partial(ResNet, depths=(3, 4, 6, 3)), 224, "imagenet"),
)
