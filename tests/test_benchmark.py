"""The benchmarks, in small: what they write, and that nothing ends up under the wrong name."""

import csv

import pytest
import torch

from launch import benchmark
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


def test_take_turns(monkeypatch):
    calls = []
    clock = iter(range(100))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    providers = {name: lambda n=name: calls.append(n) for name in "ab"}
    seconds = benchmark._take_turns(providers, 3, CPU)
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
