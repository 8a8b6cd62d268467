"""A comparison from the folders of runs to the files, whatever is wrong with some of them."""

import re
import shutil
import sys
import threading
import time

import pytest

from pipeline.report import compare as module
from pipeline.report.compare import Request, compare
from pipeline.report.figures import Costs
from pipeline.run.errors import UserError
from tests.report.fixtures import epochs, write_run

FILES = ["comparison.csv", "comparison.html", "comparison.md", "comparison.png"]
FINISHED = "train.epochs=3"


def count(config):
    return {"total": {"packed_bytes": 1000, "ops": 2e6}}


@pytest.fixture
def runs(tmp_path):
    """Two runs, in a folder that stands for runs/."""
    for name in ("a ä", "b"):
        write_run(tmp_path / "runs" / name, epochs(3), FINISHED, f"optim.lr=0.{len(name)}")
    return tmp_path / "runs"


@pytest.fixture
def said(monkeypatch):
    """What a comparison says, and its warnings under ``warnings``."""

    class Said(list):
        warnings: list = []

        def compare(self, paths, out, metric="val_top1", watch=0, project=None):
            compare(Request(paths, metric, out, project), count, self.append, watch)

    words = Said()
    words.warnings = []
    monkeypatch.setattr(
        module.logger, "warning", lambda *line: words.warnings.append(line[0] % line[1:])
    )
    return words


def test_tables_files_and_where_they_are(runs, said):
    said.compare(sorted(runs.iterdir()), runs / "compare")
    (text,) = said
    lines = text.splitlines()
    assert lines[:4] == ["settings that differ", "     optim.lr", "a ä       0.3", "b         0.1"]
    assert any(re.match(r"a ä +20.00 +3 +20.00 +3 +101 +0.0025 +1kB +2M$", each) for each in lines)
    assert sorted(each.name for each in (runs / "compare").iterdir()) == FILES
    assert sorted(lines[-4:]) == [str(runs / "compare" / name) for name in FILES]
    assert said.warnings == []


def test_an_earlier_comparison_is_no_run(runs, said):
    for _ in range(2):
        said.compare(sorted(runs.iterdir()), runs / "compare")
    assert said[0] == said[1] and said.warnings == []
    write_run(runs / "mine", epochs(3))  # the folder may be that of a run all the same
    said.compare([runs / "mine"], runs / "mine")
    assert "mine" in said[-1]


def test_the_rest_is_compared_without_what_is_left_out(runs, said, tmp_path):
    (tmp_path / "other").mkdir()
    said.compare([tmp_path / "other", *runs.iterdir()], tmp_path / "out")
    assert len(said.warnings) == 1 and said.warnings[0].startswith("left out: cannot read ")
    assert "a ä" in said[0]
    for name in ("comparison.md", "comparison.html"):
        assert "Left out" in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(("package", "suffix"), [("matplotlib", "png"), ("plotly.io", "html")])
def test_without_a_package_the_rest_is_written(runs, said, tmp_path, monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    said.compare(list(runs.iterdir()), tmp_path / "out")
    (warning,) = said.warnings
    assert warning.startswith(f"no {tmp_path}/out/comparison.{suffix}: ")
    assert package in warning and warning.endswith("; make setup installs it")
    assert [name for name in FILES if not (tmp_path / "out" / name).exists()] == [
        f"comparison.{suffix}"
    ]
    assert suffix not in said[0]


def test_no_display_is_needed(runs, said, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    said.compare(list(runs.iterdir()), tmp_path / "out")
    assert said.warnings == []


def test_an_unknown_metric_names_those_that_are_known(runs, said, tmp_path):
    with pytest.raises(UserError) as caught:
        said.compare(list(runs.iterdir()), tmp_path / "out", metric="val_top")
    message = str(caught.value)
    assert message.startswith("--metric: no run has val_top; choose one of ")
    known = message.partition("one of ")[2].split(", ")
    assert {"val_top1", "train_loss", "lr"} <= set(known)
    for metric in known:
        request = Request(list(runs.iterdir()), metric, tmp_path / "out")
        assert module.compared(request, Costs(count)).results[1][1] != "–"


def test_a_metric_that_some_runs_have(runs, said, tmp_path):
    write_run(runs / "margin", [{**each, "val_margin": 1.0} for each in epochs(3)], FINISHED)
    said.compare(list(runs.iterdir()), tmp_path / "out", metric="val_margin")
    lines = [f"{name} has no val_margin: it has no curve there" for name in ("a ä", "b")]
    assert sorted(said.warnings) == lines


def test_runs_that_have_just_begun(runs, said, tmp_path):
    path = write_run(runs / "new", [], "train.epochs=5")
    said.compare([path], tmp_path / "out")
    assert "0 of 5" in said[0] and said.warnings == []


def test_where_nothing_can_be_compared_the_reason_is_told(said, tmp_path):
    gone = [tmp_path / str(i) for i in range(9)]
    with pytest.raises(UserError) as caught:
        said.compare(gone, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"no run to compare; left out: cannot read {gone[0]}")
    assert message.count("left out") == 3
    with pytest.raises(UserError, match="no run to compare; give folders such as runs/quickstart"):
        said.compare([tmp_path / "out"], tmp_path / "out")


@pytest.mark.parametrize("name", ["file/out", "file"])
def test_a_folder_that_cannot_be_made_is_told_at_once(runs, said, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file.*; name another folder with --out$"):
        said.compare(list(runs.iterdir()), tmp_path / name)
    assert said == []


def test_a_file_that_cannot_be_written_is_told(runs, said, tmp_path):
    (tmp_path / "out/comparison.csv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*comparison.csv: .*; name another folder"):
        said.compare(list(runs.iterdir()), tmp_path / "out")


def test_wandb_is_compared_too_or_told(runs, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said.compare(list(runs.iterdir()), tmp_path / "out", project="team/project")
    assert said.warnings == [
        "left out: team/project: wandb is not installed; make setup installs it"
    ]
    with pytest.raises(UserError, match="no run to compare; left out: team/project: wandb is not"):
        said.compare([], tmp_path / "out", project="team/project")


def test_watching_draws_until_all_runs_are_finished(runs, said, tmp_path):
    path = write_run(tmp_path / "growing", epochs(1), FINISHED)
    lines = (path / "metrics.jsonl").read_text()

    def train():
        for done in (2, 3):
            time.sleep(1)
            further = write_run(tmp_path / f"at {done}", epochs(done), FINISHED)
            shutil.copy(further / "metrics.jsonl", path)

    training = threading.Thread(target=train)
    training.start()
    said.compare([path, runs / "b"], tmp_path / "out", watch=1)
    training.join()
    assert "1 of 3" in said[0] and " of 3" not in said[-1] and len(said) >= 2
    assert (path / "metrics.jsonl").read_text().startswith(lines)


def test_a_watch_draws_only_what_has_changed(said, tmp_path, monkeypatch):
    path = write_run(tmp_path / "running", epochs(1), FINISHED)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", nap)
    with pytest.raises(KeyboardInterrupt):
        said.compare([path], tmp_path / "out", watch=7)
    assert naps == [7, 7, 7] and len(said) == 1


def test_a_terminal_is_cleared_before_it_is_drawn_anew(runs, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    said.compare(list(runs.iterdir()), tmp_path / "out")
    said.compare(list(runs.iterdir()), tmp_path / "out", watch=1)
    assert said[1] == module.CLEAR and said[0] == said[2] and len(said) == 3


@pytest.mark.slow
def test_two_hundred_runs_take_less_than_half_a_minute(said, tmp_path):
    """Those of a study: 10 settings and 20 seeds, of 200 epochs."""
    first = write_run(tmp_path / "0", epochs(200), "train.epochs=200", "optim.lr=0.3", "seed=1234")
    text = (first / "config.yaml").read_text()
    assert "lr: 0.3" in text and "seed: 1234" in text
    for i in range(1, 200):
        shutil.copytree(first, tmp_path / str(i))
        other = text.replace("seed: 1234", f"seed: {i}").replace("lr: 0.3", f"lr: 1.{i % 10}")
        (tmp_path / str(i) / "config.yaml").write_text(other)
    begin = time.monotonic()
    said.compare([tmp_path / str(i) for i in range(200)], tmp_path / "out")
    assert time.monotonic() - begin < 30 and said.warnings == []
    assert said[0].count(": mean of ") == 10
