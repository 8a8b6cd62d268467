"""The CSV files that measurements go to."""

import csv

import torch

from launch.bench import results

CPU = torch.device("cpu")


def test_rows_are_appended_to_the_devices_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    values = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    row = results.row("case", "ours", "step", "throughput", "images/s", values)
    for _ in range(2):
        results.write("train", [row], CPU, "abc1234")
    with open(tmp_path / "results" / "train_cpu.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 and tuple(lines[0]) == results.COLUMNS
    assert (lines[0]["p20"], lines[0]["p50"], lines[0]["p80"]) == ("2.0", "3.5", "5.0")
    assert lines[0]["gpu"] == "cpu" and lines[0]["commit"] == "abc1234"
    assert "ours  step  throughput  images/s  2.0  3.5  5.0" in capsys.readouterr().out
