"""The benchmarks, in small: what they write, and that nothing ends up under the wrong name."""

import pytest
import torch

from kernels import reference
from launch.bench import cases as shapes
from launch.bench import kernels as micro
from launch.bench import loaders, results
from models import build_model
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from tests.data.fixtures import plain_folder

CPU = torch.device("cpu")
CIFAR = "configs/cifar10_resnet20.yaml"
TREE = "configs/imagenet_resnet18.yaml"


def test_loaders(tmp_path):
    pytest.importorskip("nvidia.dali")
    plain_folder(tmp_path, "train", 8)
    data = [f"data.path={tmp_path}", "data.batch_size=2", "data.workers=1", "data.size=16"]
    rows = loaders.measure(load_config(TREE, [*data, "train.precision=fp32"]), CPU, rounds=1)
    assert [row["provider"] for row in rows] == ["torchvision", "ours"]
    assert all(row["case"] == f"{tmp_path.name}/2x3x16x16/workers1" for row in rows)
    with pytest.raises(UserError, match="data.path is not set"):
        loaders.measure(load_config(TREE), CPU, rounds=1)


def test_kernel_cases_are_the_networks_shapes():
    cases = shapes.layers("resnet20", build_model("resnet20"), 4, 32)
    assert [case.name for case in cases if case.op == "block"] == [
        "block/resnet20.bn1/4x16x32x32",
        "block/resnet20.layer2.0.bn1/4x32x16x16",
        "block/resnet20.layer3.0.bn1/4x64x8x8",
    ]
    assert cases[-1].bytes("both", 2) == 13 * 4 * 64 * 8 * 8 * 2
    cases = shapes.layers("resnet18", build_model("resnet18"), 4, 64)
    assert [case.name for case in cases if case.op == "stem"] == ["stem/resnet18.bn1/4x64x32x32"]
    assert cases[-1].bytes("both", 2) == 13 * 4 * 64 * 32 * 32
    assert "block/resnet18.layer1.0.bn1/4x64x16x16" in [case.name for case in cases]


def convolutions(ops, arch="resnet20", size=32):
    return shapes.convolutions(arch, build_model(arch), 4, size, ops)


def test_convolution_cases_are_the_networks_distinct_ones():
    cases = convolutions(["conv", "conv_padded32", "conv_padded64", "conv_int8"])
    assert [case.name for case in cases if case.op == "conv"] == [
        "conv/resnet20.layer1.0.conv1/4x16x32x32",
        "conv/resnet20.layer2.0.conv1/4x16x32x32",
        "conv/resnet20.layer2.0.conv2/4x32x16x16",
        "conv/resnet20.layer3.0.conv1/4x32x16x16",
        "conv/resnet20.layer3.0.conv2/4x64x8x8",
    ]
    padded = {op: [c.channels for c in cases if c.op == op] for op in shapes.PADDED}
    assert padded == {"conv_padded32": [16, 32], "conv_padded64": [16, 32, 32, 64]}
    strided = next(case for case in cases if case.op == "conv_int8" and case.stride == 2)
    read = 4 * 16 * 32 * 32 + 32 * 16 * 9
    assert strided.bytes("forward", 2) == read + 2 * 4 * 32 * 16 * 16
    assert {case.modes for case in cases} == {("forward",)}
    found = {case.layer for case in convolutions(["conv"], "resnet18", 64)}
    assert "resnet18.layer2.0.conv1" in found and "resnet18.layer2.0.downsample.0" not in found


def test_a_device_times_the_convolutions_that_it_has(monkeypatch, capsys):
    plain = ["conv", "conv_nchw", "conv_padded32", "conv_padded64"]
    assert shapes.convolution_ops(CPU) == plain
    for capability, more in {
        (8, 0): ["conv_int8", "conv_fp16"],
        (9, 0): [*shapes.OPERANDS],
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert shapes.convolution_ops(torch.device("cuda")) == [*plain, *more]
    assert capsys.readouterr().out == "conv_fp8: not timed, since this GPU has no fp8\n"


@pytest.mark.parametrize("op", ["conv", "conv_nchw", *shapes.PADDED, *shapes.OPERANDS])
def test_convolutions_that_are_right_are_timed(op, capsys):
    cases = [shapes.Case(op, "net.layer", (2, 16, 6, 5), 32, 2)]
    (found,) = micro.measure(cases, CPU, torch.float16, micro.PROVIDERS)
    assert (found.provider, found.mode) == ("ours" if op in shapes.OPERANDS else "eager", "forward")
    assert found.seconds.min() > 0
    assert ("Tile(m=" in capsys.readouterr().out) == (op in shapes.OPERANDS)


@pytest.mark.parametrize(
    ("op", "wrong"), [("conv", 1), ("conv", 2), *(("conv_int8", output) for output in range(3))]
)
def test_a_wrong_convolution_gets_no_time(op, wrong, monkeypatch, capsys):
    def spoil(function):
        def spoilt(*arguments, **options):
            outputs = [*function(*arguments, **options)]
            outputs[wrong - 3] = outputs[wrong - 3] * 1.1
            return outputs

        return spoilt

    if op == "conv":
        monkeypatch.setattr(micro, "deviations", spoil(micro.deviations))
    else:
        monkeypatch.setattr(micro, "convolve", spoil(micro.convolve))
    case = shapes.Case(op, "net.layer", (2, 16, 6, 5), 32)
    (found,) = micro.measure([case], CPU, torch.float16, micro.PROVIDERS)
    assert found.seconds is None and "Error" not in capsys.readouterr().out


def test_a_convolution_that_does_not_compile_leaves_the_others(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("no such type\nand more")

    monkeypatch.setattr(micro, "convolve", fail)
    cases = [shapes.Case(op, "net.layer", (2, 16, 4, 4), 16) for op in ("conv_fp8", "conv")]
    found = list(micro.measure(cases, CPU, torch.float32, micro.PROVIDERS))
    assert [each.seconds is None for each in found] == [True, False]
    assert (
        "conv_fp8/net.layer/2x16x4x4 ours: RuntimeError: no such type\n" in capsys.readouterr().out
    )


def test_kernels_that_are_right_are_timed(monkeypatch):
    cases = [shapes.Case(op, "net.layer", (2, 8, 6, 6)) for op in ("binarize", "block", "stem")]
    providers = ("official", "eager", "ours")
    found = list(micro.measure(cases, CPU, torch.float32, providers))
    assert len(found) == 3 * 3 * 3
    assert all(each.seconds.min() > 0 for each in found)


@pytest.mark.parametrize("op", ["binarize", "block", "stem"])
def test_a_wrong_kernel_gets_no_time(op, monkeypatch):
    monkeypatch.setattr("kernels._native.takes", lambda t: False)
    monkeypatch.setattr(reference, "binarize_backward", lambda grad, x, *_: 1.1 * grad)
    cases = [shapes.Case(op, "net.layer", (2, 8, 6, 6))]
    right = {m.provider: m.seconds for m in micro.measure(cases, CPU, torch.float32, ("ours",))}
    assert right == {"ours": None}


def test_kernels_without_a_gpu_say_so(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="DEVICE=cpu"):
        micro.benchmark(load_config(TREE), CPU)


def test_kernel_rows_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(micro, "NETWORKS", {"resnet20": (1, 16)})
    monkeypatch.setattr(micro, "PROVIDERS", ("eager", "ours"))
    monkeypatch.setattr(micro, "copy_bandwidth", lambda device: 1e9)
    rows = micro.benchmark(load_config(TREE, ["train.device=cpu"]), CPU, 1)
    out = capsys.readouterr().out
    convolutions = [row for row in rows if row["case"].startswith("conv")]
    assert len(convolutions) == 2 * (5 + 5 + 2 + 4)
    assert {(row["provider"], row["mode"]) for row in convolutions} == {("eager", "forward")}
    assert out.count("; conv ") == 5  # each layer's fastest
    rows = [row for row in rows if row not in convolutions]
    assert {row["mode"] for row in rows} == set(shapes.MODES)
    assert {(row["metric"], row["unit"]) for row in rows} == {
        ("time", "us"),
        ("bandwidth_share", "1"),
    }
    assert (tmp_path / "kernels_cpu.png").stat().st_size > 1000
    assert out.count("block/resnet20") == len(rows) // 4
