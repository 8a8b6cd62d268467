"""Runs as plain records, also of a training that is still writing."""

import json

import pytest

from pipeline.report.runs import Run, flat, read_run
from pipeline.run.errors import UserError

STEP = {"kind": "step", "step": 1, "epoch": 0, "lr": 0.1, "loss": 2.0}
EPOCH = {"kind": "epoch", "epoch": 0, "lr": 0.1, "train_loss": 2.0}
LINES = "".join(json.dumps(record) + "\n" for record in (STEP, EPOCH))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/metrics.jsonl").write_text(LINES)
    return tmp_path / "mine"


def test_a_folder_and_its_metrics_file_are_the_same_run(folder):
    run = read_run(folder)
    assert (run.name, run.records, run.epochs) == ("mine", [STEP, EPOCH], [EPOCH])
    assert read_run(folder / "metrics.jsonl").records == run.records


def test_a_last_line_that_is_cut_off_is_left_out(folder):
    for length in range(len(LINES)):
        (folder / "metrics.jsonl").write_text(LINES[:length])
        whole = LINES[: length + 1].count("\n")  # the line feed alone may be missing
        assert read_run(folder).records == [STEP, EPOCH][:whole]


@pytest.mark.parametrize("line", ["", "{", "[1]", "\xff", '{"kind": "st'])
def test_any_other_line_that_is_no_record_is_an_error(folder, line):
    (folder / "metrics.jsonl").write_text(f"{line}\n{LINES}", encoding="latin-1")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is no JSON object; give"):
        read_run(folder)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl: No such file or directory; give"):
        read_run(tmp_path)


def test_a_runs_settings_are_text_by_dotted_keys(folder):
    assert read_run(folder).config == {} and read_run(folder).estimator == ""
    text = "seed: 3\nestimator: {name: ste, gone: yes}\noptim: {lr: 1.0e-05, name: 'null', x: null}"
    (folder / "config.yaml").write_text(text)
    run = read_run(folder)
    assert run.config == {
        "seed": "3", "estimator.name": "ste", "estimator.gone": "yes", "optim.lr": "1e-05",
        "optim.name": "null", "optim.x": "null",
    }  # fmt: skip
    assert run.estimator == "ste"
    assert run.config["optim.lr"] == flat({"optim": {"lr": 0.00001}})["optim.lr"]
    assert flat({"a": True, "b": 3.0, "c": "x\ny\udcff"}) == {"a": "true", "b": "3", "c": "x?y?"}
    (folder / "config.yaml").write_text("a: [")
    assert read_run(folder).config == {} and read_run(folder).epochs


def test_a_series_has_gaps_where_an_epoch_lacks_the_figure():
    values = [1, 2.5, True, "3", None, float("nan")]
    records = [{"kind": "epoch", "epoch": 4 + i, "a": value} for i, value in enumerate(values)]
    run = Run("any", [*records, {"kind": "epoch"}])
    assert [value for value in run.series("a") if value == value] == [1, 2.5]
    assert len(run.series("a")) == 7 and run.done == [5, 6, 7, 8, 9, 10, 7]
