"""The figures of a run, and of several."""

import math

import pytest

from pipeline.report.figures import Costs, figures, is_finished, mean_and_deviation, planned
from pipeline.report.runs import Run
from pipeline.run.config import make_config
from pipeline.train.counting import count_config
from tests.report.fixtures import epochs

NETWORK = {"model.arch": "resnet20", "model.bits": "1w1a", "model.num_classes": "10"}


def with_top1(*values):
    return Run("any", [{"kind": "epoch", "epoch": i, "val_top1": v} for i, v in enumerate(values)])


def test_figures():
    run = Run("any", epochs(3))
    found = figures(run, "val_top1", (100.0, 200.0))
    assert found == {
        "best": 20.0, "at": 3, "last": 20.0, "epochs": 3, "images/s": 101.0, "hours": 9 / 3600,
        "size": 100.0, "OPs": 200.0,
    }  # fmt: skip
    assert figures(run, "train_loss")["best"] == 2 / 3 and figures(run, "data_wait")["best"] == 0


def test_the_best_epoch_may_not_be_the_last():
    found = figures(with_top1(10.0, 30.0, 20.0), "val_top1")
    assert (found["best"], found["at"], found["last"]) == (30, 2, 20)
    found = figures(with_top1(None, 30.0, 30.0, "x"), "val_top1")
    assert (found["best"], found["at"], found["last"], found["epochs"]) == (30, 2, 30, 4)


def test_what_nobody_knows_is_not_a_number():
    found = figures(Run("any", []), "val_top1")
    assert found["epochs"] == found["hours"] == 0
    assert all(
        math.isnan(found[name]) for name in ("best", "at", "last", "images/s", "size", "OPs")
    )


@pytest.mark.parametrize(
    ("text", "done", "finished"),
    [("2", 2, True), ("3", 2, False), ("x", 2, False), (None, 2, False)],
)
def test_finished(text, done, finished):
    config = {} if text is None else {"train.epochs": text}
    run = Run("any", epochs(done), config)
    assert is_finished(run) == finished
    assert math.isnan(planned(run)) == (text in ("x", None))


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, math.nan, 3.0]) == (2, 1)  # of the sample: n - 1
    mean, deviation = mean_and_deviation([5.0])
    assert mean == 5 and math.isnan(deviation)
    assert math.isnan(mean_and_deviation([math.nan])[0])


def test_a_network_costs_what_summary_says_and_is_counted_once():
    counted = []

    def count(config):
        counted.append(config.network)
        return count_config(config)

    costs, total = Costs(count), count_config(make_config({}, [], name="x"))["total"]
    expected = (total["packed_bytes"], total["ops"])
    for more in ({}, {"optim.lr": "7", "model.gone": "1"}, {"seed": "5"}):
        assert costs.of(Run("any", [], {**NETWORK, **more})) == expected
    assert counted == [("resnet20", "1w1a", 10)]
    assert costs.of(Run("any", [], {**NETWORK, "model.num_classes": "100"}))[0] > expected[0]
    assert len(counted) == 2


@pytest.mark.parametrize(
    "config",
    [{}, {"model.bits": "1w1a"}, {"model.arch": "gone"}, {**NETWORK, "model.bits": "9w9a"}],
)
def test_a_network_that_this_version_does_not_have_has_no_cost(config):
    assert all(map(math.isnan, Costs(count_config).of(Run("any", [], config))))
