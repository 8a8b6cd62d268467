"""The OpenVINO graph: binary convolutions on bits, and everything that goes wrong in silence."""

import contextlib
import gc
import platform
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launch import export as command
from launch import predict
from pipeline.export.output import Options
from pipeline.export.packed import Packed, pack_signs
from pipeline.export.program import Step
from pipeline.export.shrink import shrink
from pipeline.run.errors import UserError
from tests.export.networks import about, grouped, images_of, network, packed

openvino = pytest.importorskip("openvino")
openvino_file = pytest.importorskip("pipeline.export.openvino_file")
run_openvino = pytest.importorskip("pipeline.export.run_openvino")


def sized(arch, bits="1w1a", side=None):
    """The packed network for the images that tests draw."""
    found, side = packed(arch, bits), side or images_of(arch).shape[-1]
    images = replace(found.about.images, size=side, resize=side)
    return Packed(replace(found.about, images=images), found.steps, found.tensors)


def compiled(model):
    return openvino.compile_model(model, "CPU", run_openvino.EXACT)


def run(model, images):
    ready = compiled(model)
    return np.concatenate([ready([each[None]])[0].copy() for each in np.float32(images)])


@pytest.mark.parametrize(
    ("arch", "bits"),
    [(arch, "1w1a") for arch in ("resnet18", "resnet20", "resnet20_bireal", "vgg_small")]
    + [("resnet20", "1w32a"), ("resnet20", "32w32a"), ("vgg_small", "32w32a")],
)
def test_logits(arch, bits):
    images = images_of(arch)
    found = run(openvino_file.build(sized(arch, bits)), images)
    with torch.no_grad():
        logits = network(arch, bits)(images).numpy()
    assert abs(found - logits).max() <= 1e-4 * max(1, abs(logits).max())
    assert (found.argmax(1) == logits.argmax(1)).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="bits are for x86")
@pytest.mark.parametrize("arch", ["resnet18", "resnet20"])
def test_binary_convolutions_run_on_bits(arch):
    ready = compiled(openvino_file.build(sized(arch)))
    info = [layer.get_rt_info() for layer in ready.get_runtime_model().get_ops()]
    kinds = [(each["layerType"].astype(str), each["primitiveType"].astype(str)) for each in info]
    binary = [primitive for kind, primitive in kinds if kind == "BinaryConvolution"]
    assert len(binary) == len(network(arch).binary_convs())
    assert all(primitive.startswith("jit") and "u1" in primitive for primitive in binary)


def convolution(channels, side, stride, count=3):
    """A network that gives the sums of one binary convolution, and its weights."""
    rng = np.random.default_rng(channels + side)
    signs = rng.choice([-1.0, 1.0], (count, channels, 3, 3)).astype(np.float32)
    first = rng.choice([-1.0, 1.0], (channels, 3, 1, 1)).astype(np.float32)
    places = ((side - 1) // stride + 1) ** 2 * count
    layer = {"stride": stride, "padding": 1, "channels": channels}
    steps = (
        Step("conv", (0,), {"layer": "stem", "stride": 1, "padding": 0}),
        Step("sign", (1,)), Step("conv", (2,), {"layer": "a", **layer}),
        Step("flatten", (3,)), Step("linear", (4,), {"layer": "fc"}),
    )  # fmt: skip
    tensors = {
        "stem.weight": first, "a.bits": pack_signs(signs), "a.scale": np.ones((), np.float32),
        "fc.weight": np.eye(places, dtype=np.float32), "fc.bias": np.zeros(places, np.float32),
    }  # fmt: skip
    images = replace(about().images, size=side, resize=side)
    return Packed(replace(about(), images=images), steps, tensors), first, signs


@pytest.mark.parametrize(("channels", "side", "stride"), [
    (16, 5, 1), (16, 8, 2), (40, 7, 2), (64, 3, 1), (8, 4, 1), (96, 1, 1),
])  # fmt: skip
def test_sums_of_bits_and_borders(channels, side, stride):
    """The order of bits, and padding that adds nothing."""
    network, first, signs = convolution(channels, side, stride)
    images = torch.randn(2, 3, side, side)
    xb = torch.where(F.conv2d(images, torch.from_numpy(first)) >= 0, 1.0, -1.0)
    sums = F.conv2d(xb, torch.from_numpy(signs), stride=stride, padding=1)
    assert np.array_equal(run(openvino_file.build(network), images), sums.flatten(1).numpy())


def test_channels_that_fill_no_byte_are_refused():
    with pytest.raises(UserError, match="a has 12 input channels.* multiple of 8; export with --t"):
        openvino_file.build(convolution(12, 3, 1)[0])


@pytest.mark.parametrize("real", ["float32", "int8"])
def test_groups_and_dilation(real):
    network, images, logits = grouped()
    found = run(openvino_file.build(shrink(network, real)), images)
    assert np.allclose(found, logits, atol=1e-6 if real == "float32" else 0.05)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_sign_of_0_is_1(zero):
    network, _, signs = convolution(16, 3, 1)
    found = run(openvino_file.build(network), np.full((1, 3, 3, 3), zero))
    sums = F.conv2d(torch.ones(1, 16, 3, 3), torch.from_numpy(signs), padding=1)
    assert np.array_equal(found, sums.flatten(1).numpy())


def test_limits_of_levels_are_scalars():
    """Per channel, or with -1 and 1, the plugin gives other sums."""
    model = openvino_file.build(sized("resnet20"))
    quantizers = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(quantizers) == 18
    for op in quantizers:
        limits = [op.input_value(place).get_node().data for place in range(1, 5)]
        assert [limit.size for limit in limits] == [1] * 4
        assert [float(limit) for limit in limits] == [
            *[float(np.float32(-1.17549435e-38))] * 2,
            0,
            1,
        ]


def test_shapes_are_fixed():
    model = openvino_file.build(sized("resnet20"))
    assert not model.is_dynamic() and list(model.inputs[0].shape) == [1, 3, 32, 32]


def test_constants_outlive_what_they_were_made_of():
    images, model = images_of("resnet20"), openvino_file.build(sized("resnet20"))
    before = run(model, images)
    gc.collect()
    rubbish = [np.full(2**16, 255, np.uint8) for _ in range(200)]
    assert np.array_equal(run(model, images), before) and len(rubbish) == 200


@pytest.mark.parametrize("real", ["classifier16", "int8"])
def test_smaller_real_weights_are_expanded(real):
    small = shrink(sized("resnet20"), real)
    large = {name: small.weight(name[:-7]) if name.endswith(".weight") else each
             for name, each in small.tensors.items() if not name.endswith(".unit")}  # fmt: skip
    wide = Packed(small.about, small.steps, large)
    images = images_of("resnet20")
    found = [run(openvino_file.build(each), images) for each in (small, wide)]
    # The plugin may multiply behind the convolution, which flips a sign here and there.
    assert abs(found[0] - found[1]).max() <= 0.05 < found[1].std() / 20


def test_predict_takes_it(checkpoint, data, tmp_path, capsys):
    command.main([str(checkpoint), "--to", "openvino", str(tmp_path / "x.xml")])
    assert (tmp_path / "x.bin").stat().st_size < 50_000
    found = []
    for model in (checkpoint, tmp_path / "x.xml"):
        capsys.readouterr()
        predict.main([str(model), str(data / "test"), "--csv"])
        found.append([line.split(",")[:3] for line in capsys.readouterr().out.splitlines()])
    assert found[0] == found[1] and len(found[0]) == 13


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: contextlib.nullcontext("/proc"))
    with pytest.raises(UserError, match="no temporary file can be written to /proc; make room or"):
        openvino_file.files(sized("resnet20"), Options())


def test_foreign_and_damaged_files_are_one_line(checkpoint, data, tmp_path, capfd):
    command.main([str(checkpoint), "--to", "openvino", str(tmp_path / "x.xml")])
    text, constants = ((tmp_path / name).read_bytes() for name in ("x.xml", "x.bin"))
    for xml, weights in ((text[:-99], constants), (b"<net/>", constants), (b"", constants),
                         (text, constants[:-99]), (text, b""),
                         (text.replace(b"reste", b"other"), constants)):  # fmt: skip
        (tmp_path / "x.xml").write_bytes(xml)
        (tmp_path / "x.bin").write_bytes(weights)
        with pytest.raises(UserError, match="no OpenVINO file that export wrote, or it or"):
            predict.main([str(tmp_path / "x.xml"), str(data / "test")])
    assert "absl" not in capfd.readouterr().err  # readers of other formats
