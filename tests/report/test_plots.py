"""The picture of a training, and that it never ends one."""

import json
import logging
import sys

import pytest

from pipeline.report import heatmaps
from pipeline.report.pictures import DARK
from pipeline.report.plots import (
    changing_parameters,
    draw_run,
    indicators,
    metrics,
    panels,
    training,
    watched,
)
from pipeline.report.runs import Run, read_run
from tests import ROOT
from tests.report.fixtures import epochs

PNG = b"\x89PNG\r\n"
RUNS = sorted(ROOT.glob("docs/results/*.jsonl"))


@pytest.fixture
def folder(tmp_path):
    text = "".join(json.dumps(record) + "\n" for record in epochs(3, o=[1, 2, 3], t=[1.5] * 3))
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_only_parameters_that_change_are_drawn():
    records = epochs(3, o=[1, 2, 3], t=[1.5, 1.5, 1.5])
    assert changing_parameters(records) == {"o": [1, 2, 3]}


def test_a_metric_of_training_and_evaluation_gets_a_panel():
    pytest.importorskip("matplotlib")
    further = {"train_margin": 1.0, "val_margin": 2.0, "val_top5": 90.0}
    records = [{**record, **further} for record in epochs(2)]
    assert metrics(records) == ["loss", "top1", "margin"]
    assert training(Run("any", records)).startswith(PNG)


def test_schedule_and_speed_get_panels_too():
    records = epochs(3, o=[1, 2, 3], t=[1.5] * 3)
    assert panels(records) == {
        "cross-entropy (nats)": {"train": [2, 1, 2 / 3], "val": [2, 1, 2 / 3]},
        "top-1 (%)": {"train": [0, 10, 20], "val": [0, 10, 20]},
        "estimator: o": {"o": [1, 2, 3]},
        "learning rate": {"lr": [0.1, 0.05, 0.1 / 3]},
        "images per second": {"images_per_second": [100, 101, 102]},
        "waiting for data (% of time)": {"data_wait": [0, 10, 20]},
    }
    of_another_version = [{k: v for k, v in each.items() if k != "data_wait"} for each in records]
    assert len(panels(of_another_version)) == 5 and len(panels(epochs(3))) == 5


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_committed_runs_are_drawn(path):
    pytest.importorskip("matplotlib")
    assert training(read_run(path), DARK).startswith(PNG)


@pytest.mark.parametrize(
    "records",
    [
        epochs(1),
        epochs(2, t=[1e-3, 10.0], k=[1e3, 1.0], n=[9, 10]),
        epochs(40, t=[-1.0] * 39 + [float("nan")]),
    ],
    ids=["one epoch", "three parameters", "many epochs"],
)
def test_any_training_is_drawn(records):
    pytest.importorskip("matplotlib")
    assert training(Run("any $\\x$", records)).startswith(PNG)  # a name is no formula


def test_a_finished_run_gets_its_picture(folder):
    pytest.importorskip("matplotlib")
    path = draw_run(folder)
    assert path == folder / "plots/training.png" and path.read_bytes().startswith(PNG)
    assert draw_run(folder) == path  # drawn again, it is replaced


def with_indicators(count, layers=("layer1.0.conv1", "layer1.0.conv2"), signs=("bn1",)):
    """Records of ``count`` epochs in which each layer has figures of its own."""
    return [
        {
            **record,
            "indicators": {
                "weights": {
                    layer: dict.fromkeys(heatmaps.PANELS["weights"], 0.1 * (i + 1) + epoch)
                    for i, layer in enumerate(layers)
                },
                "activations": {sign: {"error": 0.5, "positive": 0.25} for sign in signs},
                "total": {"error": 1.0},
            },
        }
        for epoch, record in enumerate(epochs(count))
    ]


def test_indicators_are_a_row_a_layer_and_a_column_an_epoch():
    records = with_indicators(3)
    assert heatmaps.layers(records, "weights") == ["layer1.0.conv1", "layer1.0.conv2"]
    rows = heatmaps.values(records, "weights", "flipped")
    assert rows == [pytest.approx([0.1, 1.1, 2.1]), pytest.approx([0.2, 1.2, 2.2])]


def test_shares_that_are_all_0_have_a_scale_of_shares():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    heatmaps._map(figure, axes := figure.subplots(), [[0.0, 0.0], [0.0, 0.0]], is_log=False)
    assert axes.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    "records",
    [
        with_indicators(1),
        pytest.param(
            with_indicators(40, [f"layer{i}.0.conv1" for i in range(32)], ["bn1", "binarize#2"]),
            marks=pytest.mark.slow,
        ),
        with_indicators(2, signs=()),  # of a 1w32a network
    ],
    ids=["one epoch", "many layers", "no signs"],
)
def test_any_indicators_are_drawn(records):
    pytest.importorskip("matplotlib")
    assert indicators(Run("any", records)).startswith(PNG)
    assert indicators(Run("any", records), DARK).startswith(PNG)


def test_a_run_with_indicators_gets_a_second_picture(folder):
    pytest.importorskip("matplotlib")
    assert draw_run(folder) and not (folder / "plots/indicators.png").exists()
    text = "".join(json.dumps(record) + "\n" for record in with_indicators(2))
    (folder / "metrics.jsonl").write_text(text)
    assert draw_run(folder) == folder / "plots/training.png"
    assert (folder / "plots/indicators.png").read_bytes().startswith(PNG)
    of_another_version = [{**record, "indicators": {"steps": 5}} for record in epochs(2)]
    assert watched(Run("old", of_another_version)) == []


def without_matplotlib(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def without_epochs(folder, monkeypatch):
    (folder / "metrics.jsonl").write_text("")


def without_metrics(folder, monkeypatch):
    (folder / "metrics.jsonl").unlink()


def without_room(folder, monkeypatch):
    (folder / "plots").write_text("a file is in the way")


def with_a_broken_matplotlib(folder, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", lambda *_, **__: 1 / 0)


def test_a_run_without_an_epoch_has_no_picture(folder, monkeypatch, caplog):
    without_epochs(folder, monkeypatch)
    assert draw_run(folder) is None and not caplog.messages


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_matplotlib, "matplotlib is not installed"),
        (without_metrics, "No such file"),
        (without_room, "plots"),
        (with_a_broken_matplotlib, "division by zero"),
    ],
)
def test_whatever_fails_is_one_warning(folder, monkeypatch, caplog, spoil, reason):
    if spoil is not without_matplotlib:
        pytest.importorskip("matplotlib")
    spoil(folder, monkeypatch)
    monkeypatch.setattr(logging.getLogger("reste"), "propagate", True)
    assert draw_run(folder) is None
    assert len(caplog.messages) == 1 and reason in caplog.text
    assert caplog.messages[0].startswith("no picture of the training: ")
