"""What networks hold and cost, against the literature and against independent counts."""

import itertools
import math

import pytest
import torch
from torch import nn

from models import ARCHS, BITS, BinaryNetwork, build_model
from models.counting import Count, count_layers, held_by
from models.layers import Binarize, BinaryConv2d, NormBinarize, global_pool

# BOPs, FLOPs and Mbit. OPs and Mbit of Bi-Real-18 and -34 were published as 1.63e8, 33.6 and 1.93e8
# to 1.94e8 (Liu et al., Bi-Real Net, 2018, and tables that follow it).
LITERATURE = {
    "resnet18": (1_676_279_808, 137_793_536, 33.5475),
    "resnet34": (3_525_967_872, 137_793_536, 43.8858),
    "resnet20": (40_108_032, 443_008, 0.350016),
    "resnet20_bireal": (40_108_032, 443_008, 0.350016),
    "resnet18_cifar": (547_356_672, 8_066_048, 17.04992),
    "vgg_small": (603_979_776, 3_620_864, 7.418176),
}


# Their convolutions are those of resnet18 and resnet34; 32 bits for each of the slopes and shifts
# that they have more, of 14,912 and 29,760, and of the 1024 that their classifiers have less.
LITERATURE |= {
    "resnet18_react": (1_676_279_808, 137_793_536, 33.5475 + 32 * (14_912 - 1024) / 1e6),
    "resnet34_react": (3_525_967_872, 137_793_536, 43.8858 + 32 * (29_760 - 1024) / 1e6),
}


def total(layers):
    return sum(layers.values(), Count())


def build(arch, bits="1w1a"):
    return build_model(arch, bits, 1000 if ARCHS[arch].dataset == "imagenet" else 10)


@pytest.mark.parametrize("arch", LITERATURE)
def test_counts_are_those_of_the_literature(arch):
    bops, flops, megabits = LITERATURE[arch]
    found = total(count_layers(build(arch), ARCHS[arch].image_size))
    assert (found.binary_macs, found.real_macs) == (bops, flops)
    assert found.ops == bops / 64 + flops
    assert found.bits / 1e6 == pytest.approx(megabits, rel=1e-5)


def test_published_figures():
    found = {arch: total(count_layers(build(arch), 224)) for arch in ("resnet18", "resnet34")}
    assert f"{found['resnet18'].ops / 1e8:.2f}" == "1.64"
    assert 1.925e8 < found["resnet34"].ops < 1.945e8
    assert [f"{each.bits / 1e6:.1f}" for each in found.values()] == ["33.5", "43.9"]
    assert f"{found['resnet18'].packed_bytes / 2**20:.2f} MiB" == "4.04 MiB"


@pytest.mark.parametrize("arch", ["resnet20", "vgg_small"])
def test_without_binary_operands_all_is_real(arch):
    binary = total(count_layers(build(arch), 32))
    for bits in ("1w32a", "32w1a", "32w32a"):
        found = total(count_layers(build(arch, bits), 32))
        assert found.binary_macs == 0 and found.real_macs == binary.binary_macs + binary.real_macs
        assert found.binary_parameters == (bits == "1w32a") * binary.binary_parameters


@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
@pytest.mark.parametrize("bits", BITS)
def test_macs_of_other_sizes_by_the_formula(arch, bits):
    """out positions x weights of each convolution; the classifier's weights once."""
    model, shapes = build(arch, bits), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda module, _, out, name=name: shapes.update(
                    {name: (out[0] if isinstance(out, tuple) else out).shape}
                )
            )
    model.eval()(torch.zeros(1, 3, 48, 48))
    layers = count_layers(model, 48)
    for name, shape in shapes.items():
        module = model.get_submodule(name)
        expected = math.prod(shape[2:]) * module.weight.numel()
        is_binary = bits == "1w1a" and isinstance(module, BinaryConv2d)
        assert (layers[name].binary_macs, layers[name].real_macs) == (
            (expected, 0) if is_binary else (0, expected)
        )


def kept(model, images, size):
    """The bytes of all different storages that a whole graph holds, by their addresses."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(torch.randn(images, 3, size, size).to(memory_format=torch.channels_last))
    y.sum().backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


QUICK = {arch for arch in ARCHS if "resnet34" not in arch and arch != "resnet18_cifar"}


def step_cases():
    """Every network in every number of bits; the slow ones have no other kinds of blocks."""
    for arch, bits in itertools.product(ARCHS, BITS):
        quick = arch == "resnet20" or (bits == "1w1a" and arch in QUICK)
        yield pytest.param(arch, bits, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("arch", "bits"), [*step_cases()])
def test_activations_are_what_a_whole_step_holds(arch, bits, monkeypatch):
    """As on a GPU: on a CPU a convolution of ±1 keeps bits."""
    monkeypatch.setattr("kernels._native.takes", lambda t: False)
    size = 32
    model = build(arch, bits).to(memory_format=torch.channels_last)
    expected = (kept(model, 7, size) - kept(model, 4, size)) / 3
    assert total(count_layers(model, size)).activation_bytes == expected > 0


def test_half_precision_keeps_half_of_what_it_multiplies():
    model = build("resnet20")
    with torch.autocast("cpu", torch.bfloat16):
        half = count_layers(model, 32)
    whole = count_layers(model, 32)
    for name in ("layer1.0.conv1", "layer3.2.conv2"):
        assert 2 * half[name].activation_bytes == whole[name].activation_bytes > 0
    assert total(half).binary_macs == total(whole).binary_macs


def test_a_network_stays_as_it_was():
    model = build("resnet20").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_layers(model, 32)
    assert not model.training and not model._forward_hooks and not model.conv1._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Own(BinaryNetwork):
    """A binary and a half binary layer, one that is used twice, and a scale of its own."""

    def __init__(self):
        super().__init__("own", "1w1a", "reste")
        self.stem = nn.Conv2d(3, 8, 3, padding=1, groups=1)
        self.norm = NormBinarize(8, Binarize("reste"))
        self.conv = BinaryConv2d(8, 8)
        self.mixed = BinaryConv2d(8, 8)
        self.gain = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 8)
        self.set_progress(0)

    def forward(self, images):
        x, xb = self.norm(self.stem(images))
        z, _ = self.conv(xb)
        z, _ = self.mixed(z)  # sums of ±1, not ±1
        y = global_pool(z) * self.gain
        return self.head(self.head(y)) @ y.T


def test_a_network_of_ones_own():
    layers = count_layers(Own(), 6)
    assert [*layers] == ["stem", "norm", "conv", "mixed", "head", ""]
    assert (layers["conv"].binary_macs, layers["conv"].real_macs) == (36 * 576, 0)
    assert (layers["mixed"].binary_macs, layers["mixed"].real_macs) == (0, 36 * 576)
    assert layers["stem"].real_macs == 36 * 216 and layers["head"].real_macs == 2 * 64
    assert layers["head"].real_parameters == 72 and layers[""].real_parameters == 8
    assert layers[""].real_macs == 8 * (3 * 3 - 2 * 2)  # of the third image with all
    assert layers["norm"].packed_bytes == 4 * 4 * 8  # weight, bias, and running statistics


def test_packed_bits_fill_whole_bytes():
    conv = BinaryConv2d(1, 1)
    assert held_by(conv) == Count(binary_parameters=9, packed_bytes=2 + 4)
    assert held_by(nn.Sequential(conv)) == Count()


def test_images_that_do_not_fit_raise():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_layers(build("vgg_small"), 40)
