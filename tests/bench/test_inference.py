"""The benchmark of inference, in small: who takes part, and what is refused a time."""

import csv
from unittest.mock import MagicMock

import numpy as np
import pytest

from launch.bench import inference
from native import build
from native.engine import instruction_sets
from pipeline.run.config import make_config
from pipeline.run.errors import UserError

CONFIG = make_config({"model": {"arch": "resnet20"}}, [], name="inference")
PEERS = ["onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino int8", "openvino 1bit"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """One image on one thread, without peers, whose figures go to a folder of the test's own."""
    try:
        instruction_sets()
    except build.NoLibrary as error:
        pytest.skip(str(error))

    def missing(self):
        raise ImportError

    for name in ("real", "int8", "one_bit"):
        monkeypatch.setattr(inference._Files, name, missing)
    monkeypatch.setattr(inference, "BATCHES", {1: 1})
    monkeypatch.setattr(inference, "THREADS", (1,))
    monkeypatch.setattr(inference, "PATH", tmp_path / "inference.csv")


def test_everybody_who_is_there_gets_a_time_and_the_others_a_row():
    rows = inference.measure(CONFIG, rounds=2)
    engines = [f"engine {name}" for name in instruction_sets() if name != "portable"]
    here = ["evaluation", *engines, "torch fp32"]
    assert [row["provider"] for row in rows] == [*here, *PEERS]
    for row in rows[: len(here)]:
        assert 0 < float(row["min_ms"]) <= float(row["p50_ms"]) and float(row["cpu_ms"]) > 0
    assert {row["p50_ms"] for row in rows[len(here) :]} == {"not measured"}
    inference.write(rows, "abc")
    with open(inference.PATH, newline="") as file:
        written = [*csv.DictReader(file)]
    assert [row["provider"] for row in written] == [*here, *PEERS]
    assert {row["commit"] for row in written} == {"abc"}


def test_what_is_wrong_gets_no_time():
    right, wrong = np.linspace(-1, 1, 10)[None], np.linspace(-1, 1.01, 10)[None]
    known = {"evaluation": lambda images: right, "engine": lambda images: wrong}
    everybody = [inference.Provider(name, known.get) for name in known]
    inference._check(everybody, known, right)
    everybody[1] = everybody[1]._replace(like="evaluation")
    with pytest.raises(AssertionError, match="engine is .* off evaluation"):
        inference._check(everybody, known, right)


def test_a_package_that_is_missing_is_told_from_a_fault():
    def fault(error):
        def make(threads):
            raise error

        return inference.Provider("it", make)

    for missing in (ImportError(), UserError("not installed; install it")):
        assert inference._calls([fault(missing)], 1) == ({}, ["it"])
    with pytest.raises(ValueError):
        inference._calls([fault(ValueError())], 1)


def test_without_a_compiler_there_is_nothing_to_measure(monkeypatch):
    reason = "there is no C++ compiler; install g++ or clang++"
    monkeypatch.setattr(build, "library", MagicMock(side_effect=build.NoLibrary(reason)))
    with pytest.raises(UserError) as caught:
        inference.measure(CONFIG, rounds=2)
    assert str(caught.value) == reason
