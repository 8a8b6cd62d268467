"""The networks: sizes, names, and agreement with the official formulation in float64."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from kernels import ESTIMATORS, TRANSFORMS, reference
from kernels.reference import sign
from launch.bench.official import build_official, set_official_o
from models import ARCHS, BITS, build_model
from models.layers import Binarize, BinaryConv2d, NormBinarize, NormPoolBinarize, binarization
from models.resnet import ResNet
from models.resnet_cifar import CifarResNet
from models.resnet_react import ReactResNet
from tests import first_quick, quick_where
from tests.models.parity import compare, make_exact

PARAMETERS = {
    "resnet20": 269_850,
    "resnet20_bireal": 269_850,
    "resnet18_cifar": 11_174_986,
    "vgg_small": 4_660_106,
    "resnet18": 11_690_536,
    "resnet34": 21_798_696,
}
BINARY_CONVS = {
    "resnet20": 18,
    "resnet20_bireal": 18,
    "resnet18_cifar": 16,
    "vgg_small": 5,
    "resnet18": 16,
    "resnet34": 32,
}
BINARY_CONVS |= {"resnet18_react": 16, "resnet34_react": 32}  # tests/models/test_react.py
OFFICIAL = [*PARAMETERS]  # the networks of the official code
# Those of 34 layers are those of 18 with more of the same blocks.
NETWORKS = quick_where(lambda arch: "resnet34" not in arch, *ARCHS)
every_network = pytest.mark.parametrize("arch", NETWORKS)
every_bits = pytest.mark.parametrize("bits", BITS)


def classes(arch):
    return 1000 if ARCHS[arch].dataset == "imagenet" else 10


def build(arch, bits):
    return build_model(arch, bits, classes(arch))


@pytest.mark.parametrize("arch", OFFICIAL)
@every_bits
def test_sizes_and_keys_are_the_official_ones(arch, bits):
    model = build(arch, bits)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]
    assert len(model.binary_convs()) == (0 if bits.startswith("32w") else BINARY_CONVS[arch])
    official = build_official(arch, bits, classes(arch))
    assert model.state_dict().keys() == official.state_dict().keys()


def test_keys_by_name():
    keys = {arch: set(build(arch, "1w1a").state_dict()) for arch in ARCHS}
    assert {"conv1.weight", "bn1.running_var", "layer3.2.conv2.weight", "bn2.weight"} <= keys[
        "resnet20"
    ]
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"} <= keys["resnet18_cifar"]
    assert {"layer2.0.downsample.0.weight", "fc.bias"} <= keys["resnet18"]
    assert {"conv0.weight", "bn5.running_mean", "fc.weight"} <= keys["vgg_small"]
    assert "linear.weight" in keys["resnet18_cifar"]
    assert not any("params" in key for each in keys.values() for key in each)


def float64_cases():
    """Every network in every number of bits, and the layout that a training has.

    float64 convolutions are slow, resnet34 is resnet18 with more of the same blocks, and bits are a
    matter of the convolutions, which all networks share.
    """
    wide = "resnet18_cifar", "vgg_small", "resnet18"
    for arch, bits in itertools.product(OFFICIAL, BITS):
        is_slow = arch in ("resnet34", "resnet18_cifar") or (arch in wide and bits != "1w1a")
        slow = [pytest.mark.slow] if is_slow else []
        yield pytest.param(arch, bits, False, marks=slow)
    for arch in ("resnet20", "resnet20_bireal", "resnet18_cifar", "vgg_small", "resnet18"):
        slow = [pytest.mark.slow] if arch in wide else []
        yield pytest.param(arch, "1w1a", True, marks=slow)


@pytest.mark.parametrize(("arch", "bits", "channels_last"), [*float64_cases()])
def test_equals_the_official_formulation_in_float64(arch, bits, channels_last):
    torch.manual_seed(0)
    ours, official = (
        build(arch, bits).double(),
        build_official(arch, bits, classes(arch)).double(),
    )
    make_exact(ours)
    ours.set_progress(0.7)
    o = torch.tensor(1 + (1 - math.cos(math.pi / 2 * 0.7)) * 2, dtype=torch.float64)
    set_official_o(official, o)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    if channels_last:
        ours = ours.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    errors = compare(ours, official, images, torch.arange(3))
    assert max(errors.values()) < 1e-9, errors


def test_set_progress_follows_the_schedule_and_stays_out_of_the_state_dict():
    model = build_model("resnet20", o_end=5.0)
    buffers = [m.params for m in model.modules() if isinstance(m, Binarize)]
    assert len(buffers) == 18 + 18
    for progress, o in ((0, 1.0), (1, 5.0), (2 / 3, 3.0)):
        model.set_progress(progress)
        for params in buffers:
            torch.testing.assert_close(params, torch.tensor([o, 1.5, 0.1]))
    with pytest.raises(ValueError, match="progress"):
        model.set_progress(1.5)


def test_an_estimator_of_weights_brings_that_of_activations():
    model = build_model("resnet20", estimator="biper", biper_w0=10.0)
    signs = [each for each in model.modules() if isinstance(each, Binarize)]
    names = {each.weights: each.estimator for each in signs}
    assert names == {True: "biper", False: "approxsign"}
    assert model.estimator_parameters() == {"w0": 10}
    assert model.estimator_parameters(weights=False) == {}
    conv = model.layer1[0].conv1
    assert torch.equal(conv.binarize(conv.signed()), sign((10 * conv.weight).sin()))
    model(torch.randn(2, 3, 32, 32)).sum().backward()


def test_the_first_stage_of_biper_convolves_the_wave():
    """Its values and gradients are those of sin(w0 w), and its signs the weights of the second."""
    options = {"estimator": "biper", "biper_w0": 30.0}
    first, second = (build_model("resnet20", bits, **options) for bits in ("32w1a", "1w1a"))
    second.load_state_dict(first.state_dict())
    conv = first.double().layer2[0].conv1
    signs = second.layer2[0].conv1
    assert torch.equal(signs.binarize(signs.signed()).double(), conv.convolved().sign())
    xb, w = sign(torch.randn(2, 16, 9, 9, dtype=torch.float64)), conv.weight.detach()
    z, scale = conv(xb)
    assert scale is None
    torch.testing.assert_close(z, F.conv2d(xb, (30 * w).sin(), stride=2, padding=1))
    g = torch.randn_like(z)
    z.backward(g)
    dense = torch.nn.grad.conv2d_weight(xb, w.shape, g, stride=2, padding=1)
    torch.testing.assert_close(conv.weight.grad, dense * 30 * (30 * w).cos())


@pytest.mark.parametrize(("estimator", "bits"), [("biper", "32w32a"), ("reste", "32w1a")])
def test_other_real_weights_are_themselves(estimator, bits):
    conv = build_model("vgg_small", bits, estimator=estimator).conv1
    assert conv.convolved() is conv.weight


def test_weights_and_activations_can_have_different_parameters():
    model = build_model("resnet20", estimator="rbnn")
    for progress, weights, activations in (
        (0, (0.01, 100), (1, 1)),
        (1 / 3, (0.1, 10), (1, 1)),
        (1, (10, 1), (10, 1)),
    ):
        model.set_progress(progress)
        assert tuple(model.estimator_parameters().values()) == pytest.approx(weights)
        for conv in model.binary_convs().values():
            assert conv.binarize.params.tolist() == pytest.approx(weights)
        binarized = [m for m in model.modules() if isinstance(m, Binarize) and not m.weights]
        assert len(binarized) == 18
        for module in binarized:
            assert module.params.tolist() == pytest.approx(activations)


@pytest.mark.parametrize("bits", ["1w1a", "1w32a", "32w1a"])
@every_network
def test_every_network_trains(arch, bits):
    check_gradients(build_model(arch, bits, 10))


@pytest.mark.parametrize("bits", ["1w1a", "1w32a"])
@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e != "reste"])
def test_every_estimator_trains(estimator, bits):
    check_gradients(CifarResNet("resnet20", bits, 10, estimator, depth=1))


def check_gradients(model):
    """They are there, finite, and not zero for binary weights."""
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(c.weight.grad.abs().sum() > 0 for c in model.binary_convs().values())


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("arch", first_quick("resnet20", "vgg_small", "resnet18"))
def test_trains_with_every_transform(arch, transform):
    """At once and stage by stage the gradients are the same."""
    torch.manual_seed(0)
    model = build_model(arch, "1w1a", 10, transform=transform)
    model.set_progress(0.5)
    images, found = torch.randn(2, 3, 32, 32), []
    for model.binarize_by_stage in (False, True):
        model.zero_grad()
        model(images).square().mean().backward()
        found.append([conv.weight.grad.clone() for conv in model.binary_convs().values()])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all() and one.abs().sum() > 0
        torch.testing.assert_close(one, other)
    for conv in model.binary_convs().values():
        expected = TRANSFORMS[transform].schedule(0.5)
        assert tuple(conv.transform.params.tolist()) == pytest.approx(expected)
        assert torch.equal(conv.signed(), conv.transform(conv.weight))


@every_network
def test_convolutions_read_only_plus_and_minus_one(arch):
    model = build_model(arch, "1w1a")
    seen = []
    for conv in model.binary_convs().values():
        conv.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    model(torch.randn(2, 3, 32, 32))
    assert len(seen) == BINARY_CONVS[arch]
    for xb, z in seen:
        assert set(xb.unique().tolist()) <= {-1.0, 1.0}
        assert torch.equal(z, z.round())


def test_the_number_of_signs_is_the_number_of_layers(monkeypatch):
    """Nothing is binarized that no convolution reads."""
    calls, sign = [], reference.sign
    monkeypatch.setattr("kernels._native.takes", lambda t: False)
    monkeypatch.setattr(reference, "sign", lambda x: calls.append(1) or sign(x))
    for arch in ARCHS:
        calls.clear()
        build_model(arch)(torch.randn(2, 3, 32, 32))
        assert len(calls) == 2 * BINARY_CONVS[arch]


def test_binary_conv_weight_gradient_has_the_scale_path():
    """dw = G s h(w) + sign(w) sum(G sign(w)) / N, with G = dL/d(s sign(w))."""
    torch.manual_seed(0)
    conv = BinaryConv2d(4, 6).double()
    conv.binarize.params.copy_(torch.tensor([3.0, 1.5, 0.1]))
    x = sign(torch.randn(2, 4, 5, 5, dtype=torch.float64))
    z, scale = conv(x)
    upstream = torch.randn_like(z)
    (z * scale * upstream).sum().backward()
    effective = (scale * sign(conv.weight)).detach().requires_grad_()
    (nn.functional.conv2d(x, effective, padding=1) * upstream).sum().backward()
    g, w = effective.grad, conv.weight.detach()
    a = w.abs()
    h = torch.where(a <= 0.1, 0.1 ** (1 / 3) / 0.1, a ** (-2 / 3) / 3).where(a <= 1.5, 0)
    expected = g * scale.detach() * h + sign(w) * (g * sign(w)).sum() / w.numel()
    torch.testing.assert_close(conv.weight.grad, expected)


def test_norm_binarize_is_relu_scale_norm_add_sign():
    norm = NormBinarize(3, Binarize("ste")).double()
    z, residual = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    y, yb = norm(z, torch.tensor(0.25).double(), residual)
    expected = nn.BatchNorm2d(3).double()(0.25 * z.relu()) + residual
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(yb, sign(expected))


@every_bits
def test_norm_pool_binarize_is_relu_norm_max_pool_sign(bits):
    norm, sign, seen = NormPoolBinarize(3).double(), binarization(bits, "ste"), []
    sign.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    z = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    x, xb = norm(z, sign)
    expected = nn.BatchNorm2d(3).double()(z.relu())
    expected = nn.functional.max_pool2d(expected, 3, stride=2, padding=1)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(xb, reference.sign(expected) if bits.endswith("w1a") else expected)
    assert seen == [(x, xb)]  # as if that module had made xb


def test_initialisation():
    torch.manual_seed(0)
    weight = build("resnet34", "1w1a").layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    vgg = build_model("vgg_small")
    assert vgg.conv4.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert vgg.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert vgg.fc.bias.abs().max() == 0
    linear = build_model("resnet20").linear.weight
    assert linear.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.15)
    conv = build_model("resnet18_cifar").layer4[1].conv2.weight  # PyTorch's default: uniform
    assert conv.abs().max().item() == pytest.approx((1 / (9 * 512)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"arch": "resnet21"}, "resnet21"),
        ({"arch": "resnet20", "bits": "2w2a"}, "2w2a"),
        ({"arch": "resnet20", "estimator": "stee"}, "stee"),
        ({"arch": "resnet20", "estimator": "ste", "o_end": 3.0}, "o_end"),
        ({"arch": "resnet20", "num_classes": 1}, "num_classes"),
        ({"arch": "resnet20", "transform": "foo"}, "'foo' is unknown; choose one of irnet, recu"),
        ({"arch": "resnet20", "o_end": 0.5}, "o_end"),
        ({"arch": "resnet20", "estimator": "dsq", "dsq_a": 1.0}, "dsq_a"),
    ],
)
def test_bad_arguments_name_themselves(arguments, word):
    with pytest.raises(ValueError, match=word):
        build_model(**arguments)


@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
def test_any_resolution(arch):
    model = build_model(arch)
    for size in (32, 47, 64):
        assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


def every_kind_of_block(arch, bits):
    """``arch`` with as few blocks as have all of its kinds."""
    if arch == "resnet18_react":
        return ReactResNet(arch, bits, 10, "reste", depths=(1, 1, 1, 1))
    if arch == "resnet18":
        return ResNet(arch, bits, 10, "reste", depths=(1, 1, 1, 1))
    return CifarResNet(arch, bits, 10, "reste", depth=1)


def traced_cases():
    """Every kind of bits and of block, of which a graph takes seconds each."""
    yield "resnet18", "1w1a"
    for bits in BITS:
        yield pytest.param("resnet20", bits, marks=pytest.mark.slow)
    yield pytest.param("resnet18_react", "1w1a", marks=pytest.mark.slow)


@pytest.mark.parametrize(("arch", "bits"), [*traced_cases()])
def test_one_graph_over_a_whole_schedule(arch, bits):
    """No recompilation and no graph break; the same numbers as eager, buffers included."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = every_kind_of_block(arch, bits)
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    images = torch.randn(4, 3, 32, 32)
    for epoch in range(3):
        for each, forward in ((model, compiled), (eager, eager)):
            each.set_progress(epoch / 3)
            each.zero_grad()
            forward(images).square().sum().backward()
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            rounding = 1e-5 * float(theirs.grad.abs().max())
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=rounding)
        for ours, theirs in zip(model.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_one_graph_of_a_function_that_calls_the_network():
    torch._dynamo.reset()
    model = CifarResNet("resnet20", "1w1a", 10, "reste", depth=1)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def doubled(images):
        return 2 * model(images)

    for epoch in range(3):
        model.set_progress(epoch / 3)
        images = torch.randn(4, 3, 32, 32)
        with torch.no_grad():
            found = doubled(images)
            torch.testing.assert_close(found, 2 * model(images))
        assert counter.frame_count == 1
