"""The report of a study: groups, tables and pictures."""

import csv
import io
import json
import statistics
import sys
from dataclasses import replace

import pytest

from kernels import ESTIMATORS
from launch.command import find_config
from pipeline.report import estimator_curves
from pipeline.report.estimator_curves import curves_of
from pipeline.report.pictures import png
from pipeline.report.study import draw, write_report
from pipeline.report.study_groups import Figure, groups
from pipeline.report.study_pictures import draw_plane, in_plane, over_option, seeds, with_curves
from pipeline.report.study_table import comma_separated, in_markdown, listing, plain
from pipeline.run.study import read_study

PNG = b"\x89PNG\r\n"
EPOCHS = 2
STUDY = """
config: cifar10_resnet20
overrides: {train.epochs: 2, optim.warmup_epochs: 0}
seeds: [1, 2]
runs:
  - estimator.name: [reste, ste]
  - {estimator.name: reste, estimator.o_end: [5, 1]}
"""


@pytest.fixture
def study(tmp_path):
    """A study of which all trials but ste's with seed 2 are finished; that has done one epoch."""
    (tmp_path / "mine.yaml").write_text(STUDY)
    study = read_study(tmp_path / "mine.yaml", [f"run.dir={tmp_path}"], find_config)
    for trial in study.trials:
        record(trial, EPOCHS - (trial.name == "ste-seed2"))
    return study


def record(trial, epochs, **further):
    """Leave the records of as many epochs, with figures that seed and o_end decide."""
    trial.config.run_folder.mkdir(parents=True)
    seed, o_end = trial.config.seed, trial.config.estimator.o_end
    with (trial.config.run_folder / "metrics.jsonl").open("w") as file:
        for epoch in range(epochs):
            figures = {"error": 10 * seed + epoch, "stability": 1e-6 * o_end * (1 + epoch)}
            top1 = 50 + seed + o_end - 20 * epoch  # the first epoch is the best
            line = {"kind": "epoch", "epoch": epoch, "seconds": 1.0, "val_top1": top1}
            file.write(json.dumps({**line, "indicators": {"total": figures}, **further}) + "\n")


def test_groups_differ_in_their_seed_alone(study):
    found = groups(study)
    labels = ["reste, o_end 1", "reste, o_end 3", "reste, o_end 5", "ste"]
    assert [group.label for group in found] == labels
    assert [(group.finished, group.total) for group in found] == [(2, 2)] * 3 + [(1, 2)]
    figures = found[0].figures
    assert figures["best"] == (52.5, pytest.approx(statistics.stdev([52, 53])))
    assert figures["last"].mean == 32.5
    assert figures["error"].mean == 15.5 and figures["stability"].mean == pytest.approx(1.5e-6)
    assert found[3].figures["best"] == (54.0, None)  # of one trial
    assert "official_error" not in figures


def test_the_table_in_markdown(study):
    head, rule, *rows = in_markdown(groups(study)).splitlines()[:6]
    assert head.startswith("| trials | finished | best val top-1 (%) | last val top-1 (%) | esti")
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert rows[0].startswith("| reste, o_end 1 | 2 of 2 | 52.50 ± 0.71 | 32.50 ± 0.71 | 15.50 ± 7")
    assert rows[3] == "| ste | 1 of 2 | 54.00 | 34.00 | 10.50 | 4.50e-06 |"


def test_the_table_for_programs(study):
    rows = list(csv.DictReader(io.StringIO(comma_separated(groups(study)))))
    assert [row["estimator.o_end"] for row in rows] == ["1", "3", "5", ""]
    assert float(rows[0]["best_mean"]) == 52.5 and rows[3]["best_deviation"] == ""


def test_columns_stand_below_each_other(study):
    lines = plain(groups(study)).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5


def test_the_listing_says_how_far_each_is(study):
    lines = listing(study).splitlines()
    assert lines[0] == "reste-seed1         2 of 2 epochs"
    assert "ste-seed2           1 of 2 epochs" in lines
    assert lines[-1] == "1 of 8 trials are to be done"


def test_what_is_drawn_of_which_groups(study):
    found = groups(study)
    assert in_plane(found) == found == with_curves(found)
    assert [group.options["o_end"] for group in over_option(found)] == [1, 3, 5]
    assert over_option(found[:1]) == []


def test_trials_of_other_settings_are_not_in_one_curve(tmp_path):
    text = STUDY.replace("[5, 1]", "[5, 1], optim.lr: [0.1, 0.2]")
    (tmp_path / "mine.yaml").write_text(text)
    study = read_study(tmp_path / "mine.yaml", [f"run.dir={tmp_path}"], find_config)
    found = groups(study)
    assert "reste, o_end 5, lr 0.2" in [group.label for group in found]
    assert over_option(found) == [] and len(with_curves(found)) == 4


@pytest.mark.parametrize("factor", [1.0, 3.0, 1e9])
def test_the_plane_has_words_at_its_values(study, factor):
    """However far the values lie apart."""
    pytest.importorskip("matplotlib")
    found = groups(study)
    stability = Figure(found[0].figures["stability"].mean * factor, None)
    apart = replace(found[0], figures={**found[0].figures, "stability": stability})
    shown = []

    def draw_and_look(figure):
        draw_plane([apart, found[1]], figure)
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        shown.extend(tick for tick in axes.get_yticks() if low <= tick <= high)

    assert png(draw_and_look, 3).startswith(PNG) and 1 <= len(shown) <= 15


def test_one_seed_is_called_so(study):
    found = groups(study)
    assert seeds(found[3:]) == "one seed" and "standard deviation" in seeds(found)


def test_the_report_is_written(study):
    pytest.importorskip("matplotlib")
    said = write_report(study)
    files = ["table.md", "table.csv", "plane.png", "o_end.png", "curves.png"]
    assert said.endswith(f"{study.folder}: {', '.join(files)}")
    for name in files:
        content = (study.folder / name).read_bytes()
        assert content and content.startswith(PNG) == name.endswith(".png")


def test_nothing_is_finished_yet(tmp_path):
    (tmp_path / "mine.yaml").write_text(STUDY)
    study = read_study(tmp_path / "mine.yaml", [f"run.dir={tmp_path}"], find_config)
    found = groups(study)
    assert not in_plane(found) and not over_option(found)
    assert "ste               0 of 2" in plain(found)
    assert "," in comma_separated(found) and "| ste | 0 of 2 |" in in_markdown(found)


def test_without_matplotlib_there_are_tables(study, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(groups(study)) == {}
    assert "no pictures of the study: matplotlib is not installed" in caplog.text
    assert write_report(study).endswith("table.md, table.csv")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_h_is_the_slope_of_f(name):
    """By differences between neighbours, wherever h does not jump; ReSTE's is cut at its threshold
    and a secant near 0."""
    options = {key: option.default for key, option in ESTIMATORS[name].options.items()}
    for curve in curves_of(name, options).values():
        step = curve.x[1] - curve.x[0]
        for i in range(1, len(curve.x) - 1):
            if name == "reste" and not 0.11 < abs(curve.x[i]) < 1.49:
                continue
            slope = (curve.f[i + 1] - curve.f[i - 1]) / (2 * step)
            nearby = [abs(curve.h[j] - curve.h[i]) for j in (i - 1, i + 1)]
            assert abs(slope - curve.h[i]) <= 1.1 * max(nearby) + 1e-3


def test_curves_that_never_change_are_one():
    assert list(curves_of("ste", {})) == ["end"]
    assert list(curves_of("reste", {"o_end": 1.0})) == ["end"]
    assert list(curves_of("reste", {"o_end": 3.0})) == list(estimator_curves.PROGRESS)
