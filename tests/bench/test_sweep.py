"""The sweep over a loader's settings: what it tries, and what it says to set."""

import csv

import pytest
import torch

from launch import benchmark
from launch.bench import results, sweep
from pipeline.run.config import load_config
from tests import ROOT
from tests.data.fixtures import plain_folder

TREE = ROOT / "configs/imagenet_resnet18.yaml"


def test_on_a_cpu_workers_are_tried_and_the_best_can_be_pasted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nvidia.dali")
    plain_folder(tmp_path / "tree", "train", 8)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sweep, "workers", lambda config: [1, 2])
    words = [f"data.path={tmp_path}/tree", "data.batch_size=2", "data.size=16", "train.device=cpu"]
    options = ["train.precision=fp32", "--rounds", "1", "--sweep"]
    benchmark.main(["loader", str(TREE), *words, *options])
    *_, last = capsys.readouterr().out.splitlines()
    override = last.removeprefix("the fastest: ")
    assert load_config(TREE, [override]).data.workers in (1, 2)
    with open(tmp_path / "results/loader_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"].rpartition("/")[2] for row in rows] == ["workers1", "workers2"]
    fastest = max(rows, key=lambda row: float(row["p50"]))
    assert fastest["case"].endswith(override.removeprefix("data.").replace("=", ""))


def test_on_a_gpu_the_decoders_share_is_tried_with_the_best_workers(monkeypatch):
    tried = []

    def measured(config, device, rounds, suffix):
        data = config.data
        tried.append((data.loader, data.workers, data.hw_decoder_load))
        rate = 10 * data.workers * (2 - data.workers / 4) + (data.hw_decoder_load == 0.65)
        values = torch.full((3,), rate, dtype=torch.float64)
        case = f"tree/2x3x16x16/workers{data.workers}{suffix}"
        return results.row(case, "ours", "loader", "throughput", "images/s", values)

    monkeypatch.setattr(sweep, "throughput", measured)
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    config = load_config(TREE, ["data.workers=6"])
    rows = sweep.sweep(config, torch.device("cuda"), 1)
    default = config.data.hw_decoder_load
    expected = [("dali", n, default) for n in (4, 6, 8, 16)]
    assert tried == [*expected, *(("dali", 4, load) for load in sweep.LOADS)]
    assert sweep.overrides(rows) == "data.workers=4 data.hw_decoder_load=0.65"
