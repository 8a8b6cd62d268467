"""The ImageNet networks resnet18_react and resnet34_react: ReActNet's form of ResNet.

They differ from resnet18 and resnet34 in what follows each binary convolution (no ReLU before batch
norm, RPReLU after the addition, RSign before the next convolution), in shortcuts that take means of
2 x 2 pixels and no stride, in a stem without ReLU and a classifier without batch norm. Source: Liu
et al., ReActNet, ECCV 2020 (arXiv:2003.03488), and github.com/liuzechun/ReActNet. Its weights have
a scale for each channel, ours one for each layer: batch norm takes out both.
"""

from functools import partial

from torch import Tensor, nn

from models.layers import BatchNorm, NormPoolBinarize, Pair, conv3x3, global_pool
from models.network import BinaryNetwork
from models.registry import Arch
from models.resnet import init_convs, make_stage
from models.rprelu import NormPReLU, shifted_binarization


class Block(nn.Module):
    """conv -> BN -> + skip -> RPReLU, twice; the first skip goes through ``downsample``, if any."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, bits: str, estimator: str
    ) -> None:
        super().__init__()
        conv = partial(conv3x3, bits=bits, estimator=estimator)
        sign = partial(shifted_binarization, bits, channels, estimator)
        self.conv1 = conv(in_channels, channels, stride=stride)
        self.bn1 = NormPReLU(channels, sign())
        self.conv2 = conv(channels, channels)
        self.bn2 = NormPReLU(channels, sign())
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            pool = nn.AvgPool2d(stride, ceil_mode=True)  # as many positions as the convolution has
            project = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.downsample = nn.Sequential(pool, project, BatchNorm(channels))

    def forward(self, pair: Pair) -> Pair:
        x, xb = pair
        residual = x if self.downsample is None else self.downsample(x)
        x, xb = self.bn1(*self.conv1(xb), residual)
        return self.bn2(*self.conv2(xb), x)


class ReactResNet(BinaryNetwork):
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
        self.bn1 = NormPoolBinarize(64, relu=False)
        self.binarize = shifted_binarization(bits, 64, estimator)
        make_block = partial(Block, bits=bits, estimator=estimator)
        self.layer1 = make_stage(make_block, 64, 64, depths[0], stride=1)
        self.layer2 = make_stage(make_block, 64, 128, depths[1], stride=2)
        self.layer3 = make_stage(make_block, 128, 256, depths[2], stride=2)
        self.layer4 = make_stage(make_block, 256, 512, depths[3], stride=2)
        self.fc = nn.Linear(512, num_classes)
        self.reset_head_binarization(self.layer4[-1])
        self.apply(init_convs)
        self.set_progress(0)

    def forward(self, images: Tensor) -> Tensor:
        pair = self.bn1(self.conv1(images), self.binarize)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            pair = layer(pair)
        return self.fc(global_pool(pair[0]))


NETWORKS = (
    Arch("resnet18_react", partial(ReactResNet, depths=(2, 2, 2, 2)), 224, "imagenet"),
    Arch("resnet34_react", partial(ReactResNet, depths=(3, 4, 6, 3)), 224, "imagenet"),
)
