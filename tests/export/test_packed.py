"""The packed network: the same logits to the bit, and as small as is claimed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kernels import binarize_weights, norm_binarize, running_statistics
from models import ARCHS, BinaryNetwork, build_model
from models.layers import BinaryConv2d, NormBinarize, global_pool
from native.engine import Engine
from pipeline.export.fuse import fused
from pipeline.export.pack import pack, unpack
from pipeline.export.packed import pack_signs
from pipeline.export.packed_file import decode, encode
from pipeline.export.program import Step, shapes
from pipeline.run.errors import UserError
from tests.export.networks import KINDS, about, images_of, network, packed

PATH = Path("model.safetensors")
CLASSES = [f"n{i:08d}" for i in range(1000)]


@pytest.mark.parametrize(
    ("arch", "bits"),
    [
        pytest.param(*kind, marks=[pytest.mark.slow] if "resnet34" in kind[0] else [])
        for kind in KINDS
    ],
)
def test_logits_come_back_to_the_bit(arch, bits):
    images = images_of(arch)
    back = unpack(decode(encode(packed(arch, bits)), PATH))
    with torch.no_grad():
        expected = network(arch, bits)(images)
        assert expected.std() > 0 and torch.equal(back(images), expected)


def test_real_weights_that_are_a_wave():
    """They are stored as what they convolve: the packed network knows no estimator of weights."""
    network, images = build_model("resnet20", "32w1a", estimator="biper"), images_of("resnet20")
    back = unpack(pack(network.eval(), about(bits="32w1a")))
    with torch.no_grad():
        assert torch.equal(back(images), network(images))


@pytest.mark.parametrize(
    ("arch", "classes", "most"),
    [("resnet18", 1000, 4_247_000), ("resnet34", 1000, 5_577_500), ("vgg_small", 10, 945_500)],
)
def test_sizes(arch, classes, most):
    network = build_model(arch, num_classes=classes)
    assert len(encode(pack(network, about(arch)))) <= most


def test_a_resnet20_takes_less_than_60_kilobytes_with_all_that_is_known_of_it():
    known = about(classes=tuple("abcdefghij"), accuracy={"top1": 86.75}, commit="v1-2-gabcdef0")
    assert len(encode(pack(build_model("resnet20"), known))) < 60_000


def test_names_of_1000_classes_take_14_kilobytes():
    named = about("resnet18", classes=tuple(CLASSES))
    network = build_model("resnet18", num_classes=1000)
    added = len(encode(pack(network, named))) - len(encode(pack(network, about("resnet18"))))
    assert added <= 14_008


def test_the_scale_is_the_one_of_training_and_no_mean_of_what_is_left():
    model, back = network("resnet18"), unpack(packed("resnet18"))
    differing = 0
    for name, conv in model.binary_convs().items():
        scale = binarize_weights([conv.weight], conv.binarize.params)[1][0]
        frozen = back.get_submodule(name)
        assert torch.equal(frozen.scale, scale)
        differing += not torch.equal((frozen.weight * scale).abs().mean(), scale)
    assert differing  # so that it matters


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 64])
def test_bits_stand_where_the_page_says(channels):
    generator = np.random.default_rng(channels)
    signs = generator.choice([-1.0, -0.0, 0.0, 1.0], (3, channels, 3, 3)).astype(np.float32)
    bits = pack_signs(signs)
    assert bits.shape == (3, 3, 3, -(-channels // 8)) and bits.dtype == np.uint8
    for o, i, row, column in np.ndindex(signs.shape):
        bit = bits[o, row, column, i // 8] >> (i % 8) & 1
        assert bit == (signs[o, i, row, column] >= 0)
    assert not (bits[..., -1] >> ((channels - 1) % 8 + 1)).any()


def test_the_folded_norm_rounds_as_torch_does():
    model, found = network("resnet18"), packed("resnet18")
    norms = [step for step in found.steps if step.op == "norm"]
    assert len(norms) == 21
    for step in norms:
        norm, scale = model.get_submodule(step.layer), None
        if "scale" in step.options:
            conv = found.steps[step["scale"] - 1].layer
            scale = torch.tensor(found.tensors[f"{conv}.scale"])
        mean, rstd = running_statistics(norm.running_mean, norm.running_var, scale=scale)
        expected = mean, norm.weight * rstd, norm.bias
        for ours, theirs in zip(found.folded(step), expected, strict=True):
            assert torch.equal(torch.tensor(ours), theirs.detach())


def test_the_equation_of_a_norm_is_the_one_of_the_kernels():
    found, model = packed("resnet20_bireal"), network("resnet20_bireal")
    step = next(each for each in found.steps if each.op == "norm" and len(each.inputs) == 2)
    mean, slope, bias = map(torch.tensor, found.folded(step))
    z = torch.randint(-99, 99, (1, len(mean), 3, 3)).float()
    r, norm = torch.randn_like(z), model.get_submodule(step.layer)
    scale = torch.tensor(found.tensors[f"{found.steps[step['scale'] - 1].layer}.scale"])
    statistics = running_statistics(norm.running_mean, norm.running_var, scale=scale)
    options = {"scale": scale, "residual": r, "training": False, "relu": step["relu"]}
    y, _ = norm_binarize(z, norm.weight, norm.bias, *statistics, **options)
    rows = torch.addcmul(bias, z.relu().permute(0, 2, 3, 1) - mean, slope)
    assert torch.equal(y, rows.permute(0, 3, 1, 2) + r)


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "vgg_small"])
def test_the_shapes_are_those_of_torch(arch):
    found, seen = packed(arch), {}
    model = unpack(found)
    for step in found.steps:
        if step.layer:
            hook = lambda *it, name=step.layer: seen.update({name: it[2]})  # noqa: E731
            model.get_submodule(step.layer).register_forward_hook(hook)
    side = ARCHS[arch].image_size
    with torch.no_grad():
        model(torch.randn(1, 3, side, side))
    found_shapes = shapes(found.steps, found.tensors, side, side)[1:]
    for step, shape in zip(found.steps, found_shapes, strict=True):
        value = seen.get(step.layer, ())
        if len(value) and step.layer != "bn1":  # of resnet18, it pools too
            assert shape == (value[0] if isinstance(value, tuple) else value).shape[1:], step
    with pytest.raises(ValueError, match="does not fit|has no size|are none"):
        shapes(found.steps, found.tensors, 0, side)


class Own(BinaryNetwork):
    """A network as the README shows one, which knows no other shape than its own."""

    def __init__(self, arch="own", bits="1w1a", classes=10, estimator="reste", **options):
        super().__init__(arch, bits, estimator, **options)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm1 = NormBinarize(12, build_model("resnet20").bn1.binarize)
        self.conv = BinaryConv2d(12, 12)
        self.norm2 = NormBinarize(12)
        self.head = nn.Linear(12, classes)
        self.set_progress(0)

    def forward(self, images):
        x, xb = self.norm1(self.stem(images))
        x, _ = self.norm2(*self.conv(xb), residual=x)
        return self.head(global_pool(x))


def test_a_network_of_ones_own_is_taken_along(monkeypatch):
    monkeypatch.setitem(ARCHS, "own", ARCHS["resnet20"].__class__("own", Own, 16, "cifar10"))
    own = Own().eval()
    file = pack(own, about("own"))
    back = unpack(decode(encode(file), PATH))
    images = torch.randn(2, 3, 9, 7)
    assert torch.equal(back(images), own(images))
    found = torch.from_numpy(Engine(fused(file))(images.numpy()))
    torch.testing.assert_close(found, own(images), rtol=1e-5, atol=1e-5)


class Grouped(Own):
    """One with groups and dilation in a real convolution."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.stem = nn.Conv2d(3, 12, 3, padding=2, dilation=2, groups=3)


def test_groups_and_dilation_are_taken_along(monkeypatch):
    monkeypatch.setitem(ARCHS, "own", ARCHS["resnet20"].__class__("own", Grouped, 16, "cifar10"))
    own = Grouped().eval()
    file = decode(encode(pack(own, about("own"))), PATH)
    assert file.steps[0].options == {
        "layer": "stem", "stride": 1, "padding": 2, "bias": True, "groups": 3, "dilation": 2
    }  # fmt: skip
    images = torch.randn(2, 3, 9, 7)
    assert torch.equal(unpack(file)(images), own(images))
    assert shapes(file.steps, file.tensors, 9, 7)[1] == (12, 9, 7)
    with pytest.raises(ValueError, match="stem has groups or dilation"):
        fused(file)
    for wrong in ({"groups": 2}, {"groups": 0}, {"dilation": 0}, {"groups": 5}):
        odd = Step("conv", (0,), {**file.steps[0].options, **wrong})
        with pytest.raises(ValueError, match="step 1, conv stem, does not fit"):
            shapes((odd,), file.tensors, 9, 7)


@pytest.mark.parametrize("odd", [{"padding_mode": "reflect"}, {"dilation": (1, 2)}])
def test_a_convolution_that_no_step_describes_is_refused(odd):
    own = Own().eval()
    own.stem = nn.Conv2d(3, 12, 3, padding=1, **odd)
    with pytest.raises(UserError, match="stem is uneven, or not padded by zeros; write its forwa"):
        pack(own, about())


def test_the_signs_of_transformed_weights_are_packed():
    model = build_model("resnet20")
    model.transform_weights("irnet")
    images = images_of("resnet20")
    with torch.no_grad():
        expected = model.eval()(images)
        assert torch.equal(unpack(pack(model, about()))(images), expected)


def test_what_no_step_stands_for_is_refused():
    class Odd(Own):
        def forward(self, images):
            return super().forward(images).softmax(1)

    with pytest.raises(UserError, match="cannot be exported.*softmax.*write its forward with"):
        pack(Odd().eval(), about())


def test_a_layer_of_zeros_has_no_scale():
    own = Own().eval()
    nn.init.zeros_(own.conv.weight)
    with pytest.raises(UserError, match="conv has no weight but 0.*train the network again"):
        pack(own, about())


def test_another_network_of_the_same_name_is_refused(monkeypatch):
    file = encode(packed())
    for name in ("resnet20_bireal", "vgg_small"):  # of the same tensors, and of others
        monkeypatch.setitem(ARCHS, "resnet20", ARCHS[name])
        with pytest.raises(UserError, match="is another resnet20 1w1a than that of models/"):
            unpack(decode(file, PATH))
    monkeypatch.setattr("pipeline.export.pack.ARCHS", {"vgg_small": ARCHS["vgg_small"]})
    with pytest.raises(UserError, match="'resnet20' '1w1a', which is not in models/"):
        unpack(decode(file, PATH))
