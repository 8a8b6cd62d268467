"""The tables of a comparison, as text of all kinds."""

import csv
import io

import pytest

from pipeline.report.comparison import Comparison
from pipeline.report.figures import figures
from pipeline.report.groups import grouped
from pipeline.report.runs import Run
from pipeline.report.tables import aligned
from pipeline.report.texts import in_csv, in_markdown, in_words
from tests.report.fixtures import epochs

HEAD = ["val_top1", "best", "at", "last", "epochs", "images/s", "hours", "size", "OPs"]


def run(name, done=3, seed="1", **config):
    settings = {"seed": seed, "run.name": name, "train.epochs": "3", **config}
    return Run(name, epochs(done), settings)


def comparison(*runs, metric="val_top1", left_out=()):
    known = {run.name: figures(run, metric, (49840.0, 1.07e6)) for run in runs}
    return Comparison(metric, grouped(runs), known, left_out)


def test_the_figures_of_each_run():
    rows = comparison(run("a"), run("b", 2, lr="0.3")).results
    assert rows == [
        HEAD,
        ["a", "20.00", "3", "20.00", "3", "101", "0.0025", "49.84kB", "1.07M"],
        ["b", "10.00", "2", "10.00", "2 of 3", "100", "0.00139", "49.84kB", "1.07M"],
    ]


def test_another_metric():
    head, row = comparison(run("a"), metric="val_loss").results
    assert head[0] == "val_loss" and row[1:4] == ["0.6667", "3", "0.6667"]


def test_a_group_has_a_mean_of_the_runs_that_are_finished():
    other = Run(
        "x2", [{**e, "val_top1": 12.0} for e in epochs(3)], {**run("x2").config, "seed": "2"}
    )
    rows = comparison(run("x1"), other, run("x3", 2, seed="3")).results
    assert [row[0] for row in rows[1:]] == ["x1", "x2", "x3", "x*: mean of 2"]
    deviation = 32**0.5  # of 20 and 12
    assert rows[-1][1] == f"16.00 ± {deviation:.2f}" == rows[-1][3]
    assert rows[-1][2] == rows[-1][4] == "" and rows[-1][7] == "49.84kB"
    assert len(comparison(run("x1"), run("x3", 2, seed="3")).results) == 3  # one is no mean


def test_what_is_missing_is_a_dash():
    empty = Run("empty", [], {"train.epochs": "3"})
    assert comparison(empty).results[1][1:7] == ["–", "–", "–", "0 of 3", "–", "0"]
    of_another_version = Run("old", [{"kind": "epoch", "epoch": 0, "accuracy": 5.0}])
    assert comparison(of_another_version).results[1][1:5] == ["–", "–", "–", "1"]


def test_settings_that_differ_lie_the_shorter_way():
    one, other = run("a", lr="0.1", wd="0"), run("b", lr="0.3", wd="1", new="x", seed="2")
    assert comparison(one, other).settings == [
        ["", "a", "b"], ["seed", "1", "2"], ["lr", "0.1", "0.3"], ["wd", "0", "1"],
        ["new", "–", "x"],
    ]  # fmt: skip
    many = [run(str(i), lr=str(i)) for i in range(4)]
    assert comparison(*many).settings == [["", "lr"], *[[str(i)] * 2 for i in range(4)]]
    seeds = [run("a1", lr="1"), run("a2", seed="2", lr="1"), run("b", lr="2")]
    assert comparison(*seeds).settings[1] == ["seed", "1, 2", "1"]
    assert comparison(run("a")).settings == []


def test_a_table_for_a_terminal_is_aligned():
    text = aligned([["", "größer"], ["a long name", "1"]])
    assert text == "             größer\na long name       1"
    words = in_words(comparison(run("a"), run("b", lr="2"))).splitlines()
    assert words[0] == "settings that differ" and words[-1].startswith("b ")
    assert in_words(comparison(run("a"))).startswith("val_top1")


def test_markdown_shows_names_as_they_are():
    text = in_markdown(comparison(run("a|b_*<i>"), run("c", lr="1"), left_out=["x: [no] run"]))
    lines = text.decode().splitlines()
    assert r"| a\|b\_\*\<i\> | 20.00 | 3 |" in text.decode()
    assert r"- x: \[no\] run" in lines and "| --- |" + " ---: |" * 8 in lines
    assert {len(line.replace(r"\|", "").split("|")) for line in lines if "49.84kB" in line} == {11}


def test_csv_has_all_digits_and_the_settings_that_differ():
    content = in_csv(comparison(run('a, "b"', lr="0.1"), Run("c", epochs(1), {"lr": "0.3"})))
    first, second = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert first["run"] == 'a, "b"' and first["lr"] == "0.1" and float(first["hours"]) == 9 / 3600
    assert second["best"] == "0.0" and second["train.epochs"] == "" and second["group"] == "c"


@pytest.mark.parametrize(
    ("metric", "metrics"), [("lr", ["lr", "val_loss"]), ("val_loss", ["val_loss"])]
)
def test_the_loss_is_shown_beside_the_metric(metric, metrics):
    assert comparison(run("a"), metric=metric).metrics == metrics
    assert comparison(Run("a", [{"kind": "epoch", "lr": 1}]), metric="lr").metrics == ["lr"]
