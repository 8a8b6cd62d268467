"""Networks to take away: with statistics of their own, as a training leaves them."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from models import ARCHS, build_model
from pipeline.export.pack import pack
from pipeline.export.packed import About, Images, Packed
from pipeline.export.program import Step

KINDS = [(arch, bits) for arch in ARCHS for bits in ("1w1a", "1w32a", "32w32a")]
# Each has steps of its own.
SEVERAL = ("resnet18", "resnet20", "resnet20_bireal", "vgg_small", "resnet18_react")


def images_of(arch, count=2, side=None):
    """(count, 3, side, side) images; ``side`` is that of the network, if it is not given."""
    side = side or min(ARCHS[arch].image_size, 64)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


@cache
def network(arch="resnet20", bits="1w1a", classes=10):
    """A network in evaluation whose batch norms have seen a batch; nobody may change it."""
    torch.manual_seed(0)
    model = build_model(arch, bits, classes)
    with torch.no_grad():
        for sign in (each for each in model.modules() if hasattr(each, "undecayed")):
            for learned in sign.undecayed():
                learned.uniform_(-0.5, 0.5)
        for norm in (each for each in model.modules() if hasattr(each, "running_mean")):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.momentum = 1.0  # the running statistics become those of such images
        model.train()(images_of(arch, 4, 32))
    return model.eval()


def about(arch="resnet20", bits="1w1a", classes=None, **values):
    side = ARCHS[arch].image_size
    images = Images(side, side, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return About(arch, bits, "reste", ARCHS[arch].dataset, classes, images, **values)


@cache
def packed(arch="resnet20", bits="1w1a", classes=10):
    return pack(network(arch, bits, classes), about(arch, bits))


def grouped():
    """A network whose logits are the means of a convolution with groups and dilation, images for
    it, and the logits."""
    weight = np.random.default_rng(0).standard_normal((6, 1, 3, 3), np.float32)
    options = {"stride": 1, "padding": 1, "groups": 3, "dilation": 2}
    steps = (
        Step("conv", (0,), {"layer": "a", **options}),
        Step("mean", (1,)), Step("linear", (2,), {"layer": "fc"}),
    )  # fmt: skip
    tensors = {"a.weight": weight, "fc.weight": np.eye(6, dtype=np.float32),
               "fc.bias": np.zeros(6, np.float32)}  # fmt: skip
    small = replace(about(), images=replace(about().images, size=9, resize=9))
    images = images_of("resnet20", 2, 9)
    maps = F.conv2d(images, torch.from_numpy(weight), padding=1, groups=3, dilation=2)
    return Packed(small, steps, tensors), images, maps.mean((2, 3)).numpy()
