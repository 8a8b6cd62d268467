"""The CIFAR-10 network without skips: vgg_small."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BatchNorm, NormBinarize, binarization, conv3x3
from models.network import BinaryNetwork
from models.registry import Arch

WIDTHS = (128, 128, 256, 256, 512, 512)
POOLED = (1, 3, 5)  # the convolutions that a 2x2 max-pooling follows


class VggSmall(BinaryNetwork):
    """(N, 3, 32, 32) -> logits (N, num_classes).

    A layer is conv -> ReLU -> BN (-> max-pool), and in 32w32a conv -> BN -> ReLU (-> max-pool).
    """

    def __init__(
        self, arch: str, bits: str, num_classes: int, estimator: str, **options: float
    ) -> None:
        super().__init__(arch, bits, estimator, **options)
        self.conv0: nn.Module = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn0: nn.Module
        for i in range(1, 6):
            conv = conv3x3(WIDTHS[i - 1], WIDTHS[i], bits=bits, estimator=estimator)
            self.add_module(f"conv{i}", conv)
        for i, width in enumerate(WIDTHS):
            # Pooled maps are binarized after the pooling, and the classifier's input not at all.
            sign = None if i in POOLED else binarization(bits, estimator)
            norm = BatchNorm(width) if bits == "32w32a" else NormBinarize(width, sign)
            self.add_module(f"bn{i}", norm)
        self.binarize = binarization(bits, estimator)
        self.fc = nn.Linear(WIDTHS[-1] * 4 * 4, num_classes)
        self.apply(_init)
        self.set_progress(0)

    def forward(self, images: Tensor) -> Tensor:
        forward = self._full_precision if self.bits == "32w32a" else self._binary
        return self.fc(forward(images).flatten(1))

    def _binary(self, images: Tensor) -> Tensor:
        x, xb = self.bn0(self.conv0(images))
        for i in range(1, 6):
            x, xb = self.get_submodule(f"bn{i}")(*self.get_submodule(f"conv{i}")(xb))
            if i in POOLED:
                x = F.max_pool2d(x, 2)
                xb = self.binarize(x) if i < 5 else x
        return x

    def _full_precision(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(images)))
        for i in range(1, 6):
            z, _ = self.get_submodule(f"conv{i}")(x)
            x = F.relu(self.get_submodule(f"bn{i}")(z))
            if i in POOLED:
                x = F.max_pool2d(x, 2)
        return x


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)


NETWORKS = (Arch("vgg_small", VggSmall, 32, "cifar10"),)
