"""ReActNet's networks: agreement with plain modules in float64, sizes, counts, and what decays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from launch.bench.official import MaskedReSTE
from models import BITS, build_model
from models.counting import Count, count_layers
from models.resnet_react import ReactResNet
from models.rprelu import NormPReLU, RSign
from pipeline.run.config import make_config
from pipeline.train.indicators import Indicators
from pipeline.train.optimizer import make_optimizer
from tests import first_quick
from tests.models.parity import compare, make_exact

POWER = torch.tensor(2.0, dtype=torch.float64)
THRESHOLD = torch.tensor(1.5, dtype=torch.float64)


def per_channel(vector):
    return vector.view(-1, 1, 1)


class Plain(nn.Module):
    """The network of separate modules and functions, by the names of ``ours``."""

    def __init__(self, ours, bits):
        super().__init__()
        self.bits = bits
        for name, module in ours.named_children():
            self.add_module(name, module)

    def conv(self, module, x, norm):
        """The convolution of sign(x + offset), where ``norm`` has that, with scaled signs."""
        weight = module.weight
        if self.bits.startswith("1w"):
            weight = MaskedReSTE.apply(weight, POWER, THRESHOLD) * weight.abs().mean()
        if self.bits.endswith("w1a"):
            x = MaskedReSTE.apply(x + per_channel(norm.offset), POWER, THRESHOLD)
        return F.conv2d(x, weight, stride=module.stride, padding=1)

    def norm(self, module, x):
        running = module.running_mean, module.running_var
        affine = module.weight, module.bias
        return F.batch_norm(x, *running, *affine, module.training, module.momentum, module.eps)

    def rprelu(self, module, x):
        return F.prelu(x + per_channel(module.before), module.slope) + per_channel(module.after)

    def forward(self, images):
        x, sign = F.max_pool2d(self.norm(self.bn1, self.conv1(images)), 3, 2, 1), self.binarize
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                skip = x
                if block.downsample is not None:
                    pooled = F.avg_pool2d(x, block.downsample[0].kernel_size, ceil_mode=True)
                    skip = self.norm(block.downsample[2], block.downsample[1](pooled))
                for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                    x = skip = self.rprelu(norm, self.norm(norm, self.conv(conv, x, sign)) + skip)
                    sign = norm.binarize
        return self.fc(x.mean((2, 3)))


def network(bits, depths=(1, 1, 1, 1), classes=10):
    torch.manual_seed(0)
    return ReactResNet("resnet18_react", bits, classes, "reste", depths=depths)


@torch.no_grad()
def spread(model):
    """Give shifts and slopes values of their own."""
    for module in model.modules():
        if isinstance(module, RSign | NormPReLU):
            for parameter in module.undecayed():
                parameter.normal_(0.1, 0.3)


@pytest.mark.parametrize("bits", first_quick(*BITS))
@pytest.mark.parametrize("size", [32, 45])
def test_equals_separate_modules_in_float64(bits, size):
    ours, other = (network(bits).double() for _ in range(2))
    make_exact(ours)
    spread(ours)
    for module in (ours, other):
        module.set_progress(2 / 3)  # o = 2
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    errors = compare(ours, Plain(other, bits), images, torch.arange(3))
    assert max(errors.values()) < 1e-9, errors


def test_sizes():
    """Those of resnet18 without its last batch norm, three vectors more for each convolution's
    output and one for its input."""
    outputs, inputs = 4 * (64 + 128 + 256 + 512), 64 + 4 * (64 + 128 + 256) + 3 * 512
    model = build_model("resnet18_react", num_classes=1000)
    expected = 11_690_536 - 2 * 512 + 3 * outputs + inputs
    assert sum(each.numel() for each in model.parameters()) == expected
    assert len(model.binary_convs()) == 16
    assert len(build_model("resnet34_react").binary_convs()) == 32
    assert model.bn1.relu is False and isinstance(model.layer4[1].bn2.binarize, nn.Identity)


def test_it_multiplies_as_resnet18_does():
    """But for shortcuts, all of whose multiplications it has too: after the pooling."""
    plain, react = (
        sum(count_layers(build_model(arch, num_classes=1000), 64).values(), Count())
        for arch in ("resnet18", "resnet18_react")
    )
    assert (plain.binary_macs, plain.real_macs) == (react.binary_macs, react.real_macs)


@pytest.mark.parametrize("decays", [True, False])
def test_shifts_and_slopes_never_decay(decays):
    model = network("1w1a")
    words = [f"optim.decay_norms={decays}"]
    first, second = make_optimizer(make_config({}, words, name="x"), model).param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (1e-4, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    still = {names[parameter].rpartition(".")[2] for parameter in second["params"]}
    learned = {"before", "slope", "after", "offset"}
    assert still == (learned if decays else learned | {"weight", "bias"})
    left = {names[parameter] for parameter in first["params"]}
    assert not any(name.rpartition(".")[2] in learned for name in left)
    assert len(first["params"]) + len(second["params"]) == len(names)


def test_indicators_look_at_what_the_sign_is_taken_of():
    model = network("1w1a").train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RSign):
                module.offset.fill_(1e6)  # all signs are +1
    indicators = Indicators(model, samples=64, official=False)
    model(torch.randn(2, 3, 32, 32)).logsumexp(1).sum().backward()
    indicators.update()
    figures = indicators.record()["activations"]
    assert list(figures)[:2] == ["binarize", "layer1.0.bn1"] and len(figures) == 8
    assert {each["positive"] for each in figures.values()} == {1.0}


def test_step_two_starts_from_step_one():
    first, second = network("32w1a"), network("1w1a")
    second.load_state_dict(first.state_dict())
    assert first.state_dict().keys() == second.state_dict().keys()
