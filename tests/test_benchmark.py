"""The benchmarks, in small: what they write, and that nothing ends up under the wrong name."""

import csv

import pytest
import torch

from kernels import benchmark as micro
from kernels import reference
from launch import benchmark
from models import build_model
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.imagefolder_fixtures import plain_folder

CPU = torch.device("cpu")
CIFAR = "configs/cifar10_resnet20.yaml"
TREE = "configs/imagenet_resnet18.yaml"


def test_steps_of_both_providers():
    config = load_config(CIFAR, ["data.batch_size=4"])
    rows = benchmark.steps(config, CPU, rounds=2)
    assert [row["provider"] for row in rows] == ["official", "ours"]
    for row in rows:
        assert row["case"] == "cifar10_resnet20/1w1a/4/fp32"
        assert 0 < float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])


def testtake_turns(monkeypatch):
    calls = []
    clock = iter(range(100))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    providers = {name: lambda n=name: calls.append(n) for name in "ab"}
    seconds = benchmark.take_turns(providers, 3, CPU)
    assert calls == ["a", "b"] * 5
    assert {name: each.tolist() for name, each in seconds.items()} == {"a": [1] * 3, "b": [1] * 3}


def test_loaders(tmp_path):
    pytest.importorskip("nvidia.dali")
    plain_folder(tmp_path, "train", 8)
    data = [f"data.path={tmp_path}", "data.batch_size=2", "data.workers=1", "data.size=16"]
    rows = benchmark.loaders(load_config(TREE, [*data, "train.precision=fp32"]), CPU, rounds=1)
    assert [row["provider"] for row in rows] == ["torchvision", "ours"]
    assert all(row["case"] == f"{tmp_path.name}/2x3x16x16/workers1" for row in rows)
    with pytest.raises(UserError, match="data.path is not set"):
        benchmark.loaders(load_config(TREE), CPU, rounds=1)


def test_a_failed_start_is_no_measurement(tmp_path):
    with pytest.raises(UserError, match="ended with 2"):
        benchmark._start(CIFAR, [f"data.path={tmp_path}"])


def test_rows_are_appended_to_the_devices_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    values = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    row = benchmark._row("case", "ours", "step", "throughput", "images/s", values)
    for _ in range(2):
        benchmark.write("train", [row], CPU)
    with open(tmp_path / "results" / "train_cpu.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 and tuple(lines[0]) == benchmark.COLUMNS
    assert (lines[0]["p20"], lines[0]["p50"], lines[0]["p80"]) == ("2.0", "3.5", "5.0")
    assert lines[0]["gpu"] == "cpu" and lines[0]["commit"]
    assert "images/s  2.0  3.5  5.0" in capsys.readouterr().out


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
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
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
