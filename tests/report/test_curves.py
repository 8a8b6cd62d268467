"""Curves of runs and of groups, and the picture of them."""

import math

import pytest

from pipeline.report.comparison import Comparison
from pipeline.report.curves import Points, curves, mean
from pipeline.report.groups import grouped
from pipeline.report.overlay import overlay, title
from pipeline.report.palette import COLOURS
from pipeline.report.runs import Run
from tests.report.fixtures import epochs

PNG = b"\x89PNG\r\n"


def run(name, done=3, first=0, **config):
    records = [{**each, "epoch": first + each["epoch"]} for each in epochs(done)]
    return Run(name, records, {"lr": "0.1", **config})


def comparison(*runs, metric="val_top1"):
    return Comparison(metric, grouped(runs), {}, ())


def test_the_curve_of_a_run():
    (curve,) = curves(comparison(run("a", **{"estimator.name": "ste"})))
    assert (curve.label, curve.colour, curve.is_thin) == ("a", COLOURS["ste"], False)
    done, values, deviations = curve.points["val_top1"]
    assert (done, values) == ([1, 2, 3], [0, 10, 20]) and all(map(math.isnan, deviations))
    assert curve.points["val_loss"].values == [2, 1, 2 / 3]


def test_a_group_has_a_mean_before_its_runs():
    found = curves(comparison(run("a1"), run("a2", seed="2"), run("b", lr="1")))
    assert [(each.label, each.is_thin) for each in found] == [
        ("a* (mean of 2)", False), ("a1", True), ("a2", True), ("b", False),
    ]  # fmt: skip
    assert {each.dash for each in found[1:3]} == {"solid"} and found[0].dash != found[3].dash


def test_a_mean_goes_as_far_as_all_of_its_runs():
    assert mean([run("a", 3), run("b", 2)], "val_top1") == Points([1, 2], [0, 10], [0, 0])
    higher = Run("c", [{**each, "val_top1": 6.0} for each in epochs(1)])
    assert mean([run("a"), higher], "val_top1") == Points([1], [3], [18**0.5])
    assert mean([run("a", 2), run("b", 2, first=5)], "val_top1") == Points([], [], [])
    assert mean([run("b", 2, first=5)], "val_top1").done == [6, 7]


def test_titles():
    assert title("val_top1") == "val top-1 (%)" and title("train_loss").startswith("train cross-")
    assert title("lr") == "lr" and title("val_margin") == "val_margin"


@pytest.mark.parametrize(
    "runs",
    [
        [run("a")],
        [run("a"), run("b", 1), run("_c 中 $\\x$", lr="3"), Run("not begun", [])],
        [run("a", seed=str(i)) for i in range(3)],
        [run(f"{i} {'x' * 200}", lr=str(i)) for i in range(40)],
        [Run("a", [{"kind": "epoch", "epoch": 0, "val_top1": None}])],
        [run("a", 2, first=7), run("b", 2)],
    ],
    ids=["one", "unequal", "seeds", "many", "of another version", "from another run"],
)
def test_any_comparison_is_drawn(runs, recwarn):
    pytest.importorskip("matplotlib")
    assert overlay(comparison(*runs)).startswith(PNG)
    assert [str(each.message) for each in recwarn] == []
