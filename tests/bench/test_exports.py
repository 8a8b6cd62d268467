"""The comparison of exports, in small: what is the same, what differs, and what is not there."""

import csv
import json
import sys

import numpy as np
import pytest

from launch import benchmark, evaluate
from launch.bench import exports
from native import build
from native.engine import instruction_sets
from pipeline.run.errors import UserError
from tests.export.checkpoints import trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("compared"))


@pytest.fixture
def rows(checkpoint, tmp_path, monkeypatch):
    """What the command writes, by export and engine; packages that are absent have no figures."""
    monkeypatch.setattr(exports, "PATH", tmp_path / "exports.csv")
    for module in ("pipeline.export.onnx_file", "openvino"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "pipeline.export.openvino_file", raising=False)
    benchmark.main(["export", str(checkpoint), f"data.path={checkpoint.parents[3] / 'data'}"])
    with open(exports.PATH, newline="") as file:
        return {(row["export"], row["engine"]): row for row in csv.DictReader(file)}


def test_exports_stand_beside_plain_evaluation(rows, checkpoint, capsys):
    words = [f"data.path={checkpoint.parents[3] / 'data'}", "train.precision=fp32", "--plain"]
    capsys.readouterr()
    evaluate.main([str(checkpoint), *words])
    plain = rows["none", "torch"]
    assert plain["top1"] == f"{json.loads(capsys.readouterr().out)['top1']:.2f}"
    assert plain["images"] == "12" and plain["bytes"] == str(checkpoint.stat().st_size)
    exact = rows["packed", "torch"]
    assert [exact[each] for each in ("top1", "changed", "largest_difference")] == [
        plain["top1"], "0", "0",
    ]  # fmt: skip
    assert int(exact["bytes"]) < 60_000
    assert float(rows["packed --real int8", "torch"]["largest_difference"]) > 0
    assert {row["top1"] for row in rows.values() if row["export"] == "openvino"} == {"not measured"}


def test_other_engines_are_close(rows):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    engines = [rows["onnx", "onnxruntime, optimizations off"], rows["onnx", "onnxruntime"]]
    try:
        if (name := instruction_sets()[0]) != "portable":
            engines.append(rows["packed", f"engine {name}"])
    except build.NoLibrary:
        pass
    assert all(float(row["largest_difference"]) < 1e-3 for row in engines)


def test_what_differs_is_counted():
    right = np.eye(3, dtype=np.float32)
    run = exports.Run("x", "y", lambda images: right[images[:, 0]] + np.float32([0, 0.75, 0]), 7)
    images = np.array([[0], [1], [2]])
    run.add(images, right, np.array([0, 1, 1]))
    run.add(images[:1], 2 * right[:1], np.array([0]))
    row = run.row()
    assert (row["top1"], row["changed"], row["images"]) == ("75.00", 0, 4)
    assert row["largest_difference"] == "1.0e+00"
    run.add(images[:1], right[1:2], np.array([1]))
    assert (run.row()["top1"], run.changed) == ("60.00", 1)
    run.add(images[:1], right[:1] * np.nan, np.array([0]))
    assert run.row()["largest_difference"] == "nan"


def test_other_classes_are_refused(checkpoint, tmp_path):
    data = checkpoint.parents[3] / "data"
    for name in ("dark", "pale"):
        (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "test" / name).symlink_to(data / "test" / name.replace("pale", "light"))
    with pytest.raises(UserError, match=r"only the checkpoint has light.*; set data.path to data"):
        benchmark.main(["export", str(checkpoint), f"data.path={tmp_path}"])
