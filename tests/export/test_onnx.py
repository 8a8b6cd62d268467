"""The ONNX graph: the same logits in onnxruntime, small, and of operators that mean the same."""

import numpy as np
import pytest
import torch

from launch import export as command
from launch import predict
from pipeline.export.output import Options
from pipeline.export.packed import Packed
from pipeline.export.program import Step
from pipeline.export.shrink import shrink
from pipeline.run.errors import UserError
from tests.export.networks import KINDS, about, grouped, images_of, network, packed

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
onnx_file = pytest.importorskip("pipeline.export.onnx_file")

PLAIN = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL


def run(model, images, level=PLAIN):
    options = runtime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = level, 1
    content = model.SerializeToString()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": np.asarray(images, np.float32)})[0]


def expected(arch, bits, images):
    with torch.no_grad():
        return network(arch, bits)(images).numpy()


@pytest.mark.parametrize(("arch", "bits"), KINDS)
def test_logits_of_the_graph_as_it_stands(arch, bits):
    images = images_of(arch)
    found = run(onnx_file.build(packed(arch, bits), 17, as_bits=True), images)
    logits = expected(arch, bits, images)
    assert abs(found - logits).max() <= 1e-4 * max(1, abs(logits).max())


@pytest.mark.parametrize("opset", [13, 15, 18, 21])
@pytest.mark.parametrize("as_bits", [True, False])
def test_opsets_and_weights(opset, as_bits):
    model = onnx_file.build(packed(), opset, as_bits=as_bits)
    assert model.opset_import[0].version == opset
    images = images_of("resnet20")
    assert abs(run(model, images) - expected("resnet20", "1w1a", images)).max() <= 1e-4


@pytest.mark.parametrize(("count", "side"), [(1, 32), (5, 32), (2, 31), (1, 64)])
def test_any_number_and_size(count, side):
    images = images_of("resnet20_bireal", count, side)
    model = onnx_file.build(packed("resnet20_bireal"), 17, as_bits=True)
    logits = expected("resnet20_bireal", "1w1a", images)
    assert abs(run(model, images) - logits).max() <= 1e-4


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "vgg_small"])
def test_the_optimized_graph_predicts_the_same(arch):
    images = images_of(arch, 8)
    model = onnx_file.build(packed(arch), 17, as_bits=True)
    found = run(model, images, runtime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert (found.argmax(1) == expected(arch, "1w1a", images).argmax(1)).all()


@pytest.mark.parametrize("real", ["classifier16", "float16", "int8"])
def test_smaller_real_weights_are_expanded(real):
    small = shrink(packed(), real)
    large = {name: small.weight(name[:-7]) if name.endswith(".weight") else each
             for name, each in small.tensors.items() if not name.endswith(".unit")}  # fmt: skip
    images = images_of("resnet20")
    wide = Packed(packed().about, packed().steps, large)
    models = [onnx_file.build(each, 17, as_bits=True) for each in (small, wide)]
    assert np.array_equal(run(models[0], images), run(models[1], images))


def test_sizes():
    content = onnx_file.files(packed("resnet18", classes=1000), Options())[".onnx"]
    assert len(content) <= 4_270_000
    assert len(onnx_file.files(packed(), Options(weights="float"))[".onnx"]) > 1_000_000


def test_the_sign_of_0_is_1():
    steps = (
        Step("sign", (0,)), Step("mean", (1,)), Step("linear", (2,), {"layer": "fc"}),
    )  # fmt: skip
    tensors = {"fc.weight": np.eye(3, dtype=np.float32), "fc.bias": np.zeros(3, np.float32)}
    model = onnx_file.build(Packed(about(), steps, tensors), 17, as_bits=True)
    images = np.array([0.0, -0.0, -1e-45], np.float32).reshape(1, 3, 1, 1)
    assert run(model, images).tolist() == [[1, 1, -1]]


def test_channels_that_are_no_multiple_of_8():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (4, 3, 3, 3))
    from pipeline.export.packed import pack_signs

    conv = Step("conv", (0,), {"layer": "a", "stride": 1, "padding": 1, "channels": 3})
    steps = (conv, Step("mean", (1,)), Step("linear", (2,), {"layer": "fc"}))
    tensors = {
        "a.bits": pack_signs(signs), "a.scale": np.ones((), np.float32),
        "fc.weight": np.eye(4, dtype=np.float32), "fc.bias": np.zeros(4, np.float32),
    }  # fmt: skip
    images = rng.choice([-1.0, 1.0], (2, 3, 5, 5))
    found = run(onnx_file.build(Packed(about(), steps, tensors), 17, as_bits=True), images)
    sums = torch.nn.functional.conv2d(*map(torch.from_numpy, (images, signs)), padding=1)
    assert np.allclose(found, sums.mean((2, 3)).numpy(), atol=1e-6)


def test_groups_and_dilation():
    network, images, logits = grouped()
    assert np.allclose(run(onnx_file.build(network, 17, as_bits=True), images), logits, atol=1e-6)


@pytest.mark.parametrize("opset", [1, 12, 999])
def test_an_unknown_opset_is_told(opset, checkpoint, tmp_path):
    words = [str(checkpoint), "--to", "onnx", str(tmp_path / "x.onnx")]
    with pytest.raises(UserError, match=rf"--opset={opset} cannot be written; .* --opset=17$"):
        command.main([*words, "--opset", str(opset)])
    assert not (tmp_path / "x.onnx").exists()


def test_predict_takes_it(checkpoint, data, tmp_path, capsys):
    command.main([str(checkpoint), "--to", "onnx", str(tmp_path / "x.onnx")])
    found = []
    for model in (checkpoint, tmp_path / "x.onnx"):
        capsys.readouterr()
        predict.main([str(model), str(data / "test"), "--csv"])
        found.append([line.split(",")[:3] for line in capsys.readouterr().out.splitlines()])
    assert found[0] == found[1] and len(found[0]) == 13


def test_foreign_and_damaged_files_are_one_line(checkpoint, data, tmp_path):
    whole = onnx_file.files(packed(), Options())[".onnx"]
    foreign = onnx.load_from_string(whole)
    del foreign.metadata_props[:]
    for content in (b"", b"x" * 99, whole[:-9], whole[:500], foreign.SerializeToString()):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(UserError, match="is no ONNX file that export wrote, or is damaged; "):
            predict.main([str(tmp_path / "x.onnx"), str(data / "test")])
