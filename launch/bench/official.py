"""The same networks in the official formulation, which tests and timings compare ours with.

They are written from the paper's equations in the way of github.com/DravenALG/ReSTE (MIT): one
module an operation, a scale multiplied into the weights, boolean masks in the gradient, o and t as
0-dim tensors, sign(0) = 0. Nothing here is shared with the networks that we train.
"""

import importlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedReSTE(torch.autograd.Function):
    """sign(x), whose gradient factor is gathered and scattered region by region; m is 0.1."""

    @staticmethod
    def forward(ctx, x, o, t):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, o, t)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, o, t = ctx.saved_tensors
        m = 0.1
        secant = m ** (1 / o.item()) / m
        factor = torch.zeros_like(x)
        positive = (x > m) & (x <= t)
        factor[positive] = x[positive] ** ((1 - o) / o) / o
        negative = (x < -m) & (x >= -t)
        factor[negative] = (-x[negative]) ** ((1 - o) / o) / o
        factor[(x >= 0) & (x <= m)] = secant
        factor[(x <= 0) & (x >= -m)] = secant
        return grad * factor, None, None


class OfficialConv2d(nn.Conv2d):
    """conv(sign(a), mean|w| sign(w)), or with a itself, or w itself, as ``bits`` say."""

    def __init__(self, in_channels: int, channels: int, stride: int, bits: str) -> None:
        super().__init__(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bits = bits
        self.o = torch.tensor(1.0)
        self.t = torch.tensor(1.5)

    def sign(self, x: Tensor) -> Tensor:
        """The sign of x with ReSTE's gradient."""
        return MaskedReSTE.apply(x, self.o.to(x.device), self.t.to(x.device))

    def forward(self, a: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.bits.startswith("1w"):
            weight = self.sign(weight) * weight.abs().mean()
        if self.bits.endswith("w1a"):
            a = self.sign(a)
        return F.conv2d(a, weight, None, self.stride, self.padding)


Conv = type[OfficialConv2d]
_IMAGENET = ("resnet18", "resnet34")


def _conv(in_channels: int, channels: int, stride: int, bits: str, kind: Conv) -> nn.Module:
    if bits == "32w32a":
        return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    return kind(in_channels, channels, stride, bits)


class _PadShortcut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        extra = x.shape[1] // 2
        zeros = x.new_zeros(x.shape[0], extra, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)


class _Block(nn.Module):
    """One basic block; ``classic`` is the full-precision CIFAR order conv, BN, ReLU."""

    def __init__(
        self,
        i: int,
        c: int,
        stride: int,
        bits: str,
        *,
        skip: str,
        per_conv: bool,
        classic: bool,
        kind: Conv,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(i, c, stride, bits, kind), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = _conv(c, c, 1, bits, kind), nn.BatchNorm2d(c)
        self.skip, self.per_conv, self.classic = skip, per_conv, classic
        if i == c:
            self.add_module(skip, nn.Sequential())
        elif skip == "pad":
            self.add_module(skip, _PadShortcut())
        else:
            project = nn.Conv2d(i, c, 1, stride, bias=False)
            self.add_module(skip, nn.Sequential(project, nn.BatchNorm2d(c)))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.get_submodule(self.skip)(x)
        if self.classic:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(out + skip)
        out = self.bn1(F.relu(self.conv1(x)))
        if self.per_conv:
            out = skip = out + skip
        return self.bn2(F.relu(self.conv2(out))) + skip


class OfficialResNet(nn.Module):
    """Every residual network of the official code."""

    def __init__(self, arch: str, bits: str, num_classes: int, kind: Conv) -> None:
        super().__init__()
        self.imagenet = arch in _IMAGENET
        widths = (16, 32, 64) if arch.startswith("resnet20") else (64, 128, 256, 512)
        depths = {"resnet34": (3, 4, 6, 3), "resnet18": (2, 2, 2, 2), "resnet18_cifar": (2,) * 4}
        skip = {"resnet18_cifar": "shortcut"}.get(arch, "downsample" if self.imagenet else "pad")
        per_conv = self.imagenet or arch == "resnet20_bireal"
        classic = bits == "32w32a" and not self.imagenet
        options = {"skip": skip, "per_conv": per_conv, "classic": classic, "kind": kind}
        kernel, stride = (7, 2) if self.imagenet else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layers, i = [], widths[0]
        for n, (width, depth) in enumerate(
            zip(widths, depths.get(arch, (3, 3, 3)), strict=True), start=1
        ):
            blocks = []
            for b in range(depth):
                step = 2 if n > 1 and b == 0 else 1
                blocks.append(_Block(i, width, step, bits, **options))  # type: ignore[arg-type]
                i = width
            self.layers.append(nn.Sequential(*blocks))
            self.add_module(f"layer{n}", self.layers[-1])
        self.bn2 = nn.BatchNorm1d(i)
        self.add_module("fc" if self.imagenet else "linear", nn.Linear(i, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(F.relu(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for layer in self.layers:
            x = layer(x)
        x = F.avg_pool2d(x, x.shape[-1]).flatten(1)
        return self.get_submodule("fc" if self.imagenet else "linear")(self.bn2(x))


class OfficialVgg(nn.Module):
    """The official vgg_small; in full precision its order is conv, BN, ReLU."""

    def __init__(self, bits: str, num_classes: int, kind: Conv) -> None:
        super().__init__()
        self.bits = bits
        widths = (3, 128, 128, 256, 256, 512, 512)
        self.conv0, self.bn0 = nn.Conv2d(3, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        for n in range(1, 6):
            self.add_module(f"conv{n}", _conv(widths[n], widths[n + 1], 1, bits, kind))
            self.add_module(f"bn{n}", nn.BatchNorm2d(widths[n + 1]))
        self.fc = nn.Linear(8192, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for n in range(6):
            conv, norm = self.get_submodule(f"conv{n}"), self.get_submodule(f"bn{n}")
            x = F.relu(norm(conv(x))) if self.bits == "32w32a" else norm(F.relu(conv(x)))
            if n % 2:
                x = F.max_pool2d(x, 2)
        return self.fc(x.flatten(1))


def has_official(arch: str) -> bool:
    """Whether the official code has the network ``arch`` of ``models.build_model``."""
    return arch in ("resnet20", "resnet20_bireal", "resnet18_cifar", "vgg_small", *_IMAGENET)


def build_official(
    arch: str, bits: str = "1w1a", num_classes: int = 10, kind: Conv = OfficialConv2d
) -> nn.Module:
    """The official network; ``arch`` and ``bits`` are those of ``models.build_model``, and binary
    convolutions are of ``kind``. ValueError for a network that the official code does not have."""
    if not has_official(arch):
        raise ValueError(f"the official code has no {arch}; compare with resnet18 or resnet34")
    if arch == "vgg_small":
        return OfficialVgg(bits, num_classes, kind)
    if arch == "resnet20_bireal" and bits == "32w32a":
        arch = "resnet20"
    return OfficialResNet(arch, bits, num_classes, kind)


def load_official(
    checkout: Path, arch: str, bits: str = "1w1a", num_classes: int = 10
) -> nn.Module:
    """The same network from a checkout of the official code itself. This works once in a
    process."""
    imagenet = arch in _IMAGENET
    name = arch.removesuffix("_cifar") + ("" if bits == "32w32a" else "_1w1a")
    sys.path.insert(0, str(checkout))
    argv, sys.argv = sys.argv, ["main.py"]  # it reads its flags when it is imported
    try:
        importlib.import_module("utils.arguments").args.a32 = bits == "1w32a"
        zoo = importlib.import_module(f"model.models_{'imagenet' if imagenet else 'cifar'}")
    finally:
        sys.path.remove(str(checkout))
        sys.argv = argv
    return getattr(zoo, name)(num_classes=num_classes)


def set_official_o(model: nn.Module, o: Tensor) -> None:
    """Set o, a 0-dim tensor, in every binary convolution; with float64 the network is a float64
    reference."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.o = module.o_a = o
        if isinstance(module, OfficialConv2d):
            module.t = torch.tensor(1.5, dtype=o.dtype)


@torch.no_grad()
def make_exact(model: nn.Module, seed: int = 0) -> None:
    """Give ``model`` weights whose mean |w| is 1/32 exactly, and batch norms without the ties of
    their initial values. In float64, rounding then flips no sign, and right networks agree."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(_dyadic(module.weight))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)


def _dyadic(weight: Tensor) -> Tensor:
    count = weight.numel()
    steps = (weight.abs() / weight.abs().mean() * 256).round().clamp(min=8).flatten()
    missing = int(256 * count - steps.sum())
    each, rest = divmod(abs(missing), count)
    change = torch.full_like(steps, each)
    change[steps.argsort(descending=True)[:rest]] += 1
    steps = steps + change.copysign(torch.tensor(float(missing)))
    assert (steps > 0).all() and steps.mean() == 256
    return (steps / 2**13).view_as(weight).copysign(weight)
