"""Runs of a wandb project, as its public API gives them."""

import sys
from types import SimpleNamespace

import pytest

from pipeline.report.runs import read_run
from pipeline.report.wandb_runs import runs_of_project, wandb_ids
from pipeline.run.config import load_config, to_dict
from pipeline.run.points import flatten
from tests import ROOT
from tests.report.fixtures import epochs, write_run


class Project:
    """Stands in for wandb: a project whose runs hold what our tracker sends."""

    def __init__(self, *runs, error=None):
        self.found, self.error = runs, error

    def Api(self, timeout):
        assert 0 < timeout < 60
        return self

    def runs(self, path):
        assert path == "team/project"
        if self.error:
            raise self.error
        yield from self.found


def sent(identity, records, name="mine"):
    """A run in wandb: its history has a row for each record, and rows of others."""
    config = load_config(ROOT / "configs/quickstart.yaml", ["run.dir=d", f"run.name={name}"])
    rows = [
        {**flatten(each, each["kind"]), "epoch": 0, "epoch/of_others": None} for each in records
    ]
    rows.append({"step/loss": 1.0, "epoch": 0, "epoch/epoch": None})
    return SimpleNamespace(
        id=identity,
        name=name,
        config={**to_dict(config), "versions": "x", "gpus": 0, "gpu": None},
        scan_history=lambda: rows,
    )


@pytest.fixture
def wandb(monkeypatch):
    def put(package):
        monkeypatch.setitem(sys.modules, "wandb", package)

    return put


def test_a_run_in_wandb_is_that_on_disk(wandb, tmp_path):
    wandb(Project(sent("1a", epochs(3))))
    (run,), left_out = runs_of_project("team/project")
    local = read_run(write_run(tmp_path / "mine", epochs(3), "optim.warmup_epochs=1"))
    assert run.name == "mine (1a)" and left_out == []
    assert run.epochs == local.epochs
    assert {**run.config, "run.dir": local.config["run.dir"]} == local.config


def test_runs_of_other_tools_are_left_out(wandb):
    wandb(Project(sent("1a", []), sent("2b", epochs(1))))
    runs, left_out = runs_of_project("team/project")
    assert [run.name for run in runs] == ["mine (2b)"]
    assert left_out == ["left out: mine (1a) in wandb holds no epochs of a training"]


def test_a_run_that_is_on_disk_too_is_shown_once(wandb, tmp_path):
    folder = write_run(tmp_path / "mine", epochs(1))
    assert wandb_ids([folder, tmp_path / "gone"]) == set()
    (folder / "wandb_id").write_text("1a")
    assert wandb_ids([folder]) == {"1a"}
    wandb(Project(sent("1a", epochs(1)), sent("2b", epochs(1))))
    runs, left_out = runs_of_project("team/project", {"1a"})
    assert [run.name for run in runs] == ["mine (2b)"] and left_out == []


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (None, "left out: team/project: wandb is not installed; make setup installs it"),
        (
            Project(error=ConnectionError("no network\nsecond line")),
            "team/project in wandb: no network",
        ),
        (Project(error=ValueError()), "left out: team/project in wandb: ValueError"),
    ],
    ids=["not installed", "no network", "no words"],
)
def test_whatever_fails_is_one_line(wandb, package, reason):
    wandb(package)
    runs, (line,) = runs_of_project("team/project")
    assert runs == [] and line.endswith(reason)
