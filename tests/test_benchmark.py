"""The benchmarks, in small: what they write, and that nothing ends up under the wrong name."""

import pytest
import torch

from kernels import benchmark as micro
from kernels import reference
from launch import benchmark, results
from models import build_model
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.imagefolder_fixtures import plain_folder

CPU = torch.device("cpu")
CIFAR = "configs/cifar10_resnet20.yaml"
TREE = "configs/imagenet_resnet18.yaml"


def test_loaders(tmp_path):
    pytest.importorskip("nvidia.dali")
    plain_folder(tmp_path, "train", 8)
    data = [f"data.path={tmp_path}", "data.batch_size=2", "data.workers=1", "data.size=16"]
    rows = benchmark.loaders(load_config(TREE, [*data, "train.precision=fp32"]), CPU, rounds=1)
    assert [row["provider"] for row in rows] == ["torchvision", "ours"]
    assert all(row["case"] == f"{tmp_path.name}/2x3x16x16/workers1" for row in rows)
    with pytest.raises(UserError, match="data.path is not set"):
        benchmark.loaders(load_config(TREE), CPU, rounds=1)


def test_kernel_cases_are_the_networks_shapes():
    cases = micro.layers("resnet20", build_model("resnet20"), 4, 32)
    assert [case.name for case in cases if case.op == "block"] == [
        "block/resnet20.bn1/4x16x32x32",
        "block/resnet20.layer2.0.bn1/4x32x16x16",
        "block/resnet20.layer3.0.bn1/4x64x8x8",
    ]
    assert cases[-1].bytes("both", 2) == 13 * 4 * 64 * 8 * 8 * 2


def test_kernels_that_are_right_are_timed(monkeypatch):
    cases = [micro.Case(op, "net.layer", (2, 8, 6, 6)) for op in ("binarize", "block")]
    providers = ("official", "eager", "ours")
    found = list(micro.measure(cases, CPU, torch.float32, providers))
    assert len(found) == 2 * 3 * 3
    assert all(each.seconds and min(each.seconds) > 0 for each in found)


@pytest.mark.parametrize("op", ["binarize", "block"])
def test_a_wrong_kernel_gets_no_time(op, monkeypatch):
    monkeypatch.setattr(reference, "binarize_backward", lambda grad, x, *_: 1.1 * grad)
    cases = [micro.Case(op, "net.layer", (2, 8, 6, 6))]
    right = {m.provider: m.seconds for m in micro.measure(cases, CPU, torch.float32, ("ours",))}
    assert right == {"ours": None}


def test_kernels_without_a_gpu_say_so(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="DEVICE=cpu"):
        benchmark.kernels(load_config(TREE), CPU)


def test_kernel_rows_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "NETWORKS", {"resnet20": (1, 16)})
    monkeypatch.setattr(micro, "PROVIDERS", ("eager", "ours"))
    monkeypatch.setattr(micro, "copy_bandwidth", lambda device: 1e9)
    rows = benchmark.kernels(load_config(TREE, ["train.device=cpu"]), CPU, 1)
    assert {row["mode"] for row in rows} == set(micro.MODES)
    assert {(row["metric"], row["unit"]) for row in rows} == {
        ("time", "us"),
        ("bandwidth_share", "1"),
    }
    assert (tmp_path / "kernels_cpu.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("block/resnet20") == len(rows) // 4
