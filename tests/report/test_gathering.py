"""Runs that a person names, whatever stands there."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.report import gathering
from pipeline.report.gathering import gather, name_of
from tests.report.fixtures import epochs, write_run


def names(*paths):
    runs, left_out = gather(paths)
    return [run.name for run in runs], left_out


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs/mine", epochs(2))


def test_a_folder_and_its_metrics_file_are_one_run(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for path in (run, run / "metrics.jsonl", tmp_path / "link"):
        runs, left_out = gather([path])
        assert [each.name for each in runs] == ["mine"] and left_out == []
        assert runs[0].config["estimator.name"] == "reste" and len(runs[0].epochs) == 2
    found, left_out = names(run, run / "metrics.jsonl", run)
    assert found == ["mine"]
    assert left_out == [f"{path} is named twice; it is shown once"
                        for path in (run / "metrics.jsonl", run)]  # fmt: skip


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / place, epochs(1)) for place in ("a/x", "b/x", "b/y", "c/b/x")]
    assert names(*paths) == (
        ["a/x", f"{tmp_path.name}/b/x", "y", "c/b/x"],
        [],
    )


def test_names_are_as_short_as_can_be():
    paths = [Path("/a/x"), Path("/x"), Path("/b/a/x"), Path("/b/y z ü")]
    assert [name_of(path, paths) for path in paths] == ["/a/x", "/x", "b/a/x", "y z ü"]


def test_names_are_one_line(tmp_path):
    path = write_run(tmp_path / "a", epochs(1)).rename(tmp_path / "a\nb\udcff")
    assert names(path) == (["a?b?"], [])


def empty(folder):
    folder.mkdir()


def of_another_tool(folder):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    (folder / "config.yaml").write_text("- a list")


def garbled(folder):
    write_run(folder, epochs(1))
    (folder / "metrics.jsonl").write_bytes(b"\xff\n{}\n")


def nested(folder):
    write_run(folder, epochs(1))
    (folder / "metrics.jsonl").write_text("[" * 10**5 + "\n{}\n")


def pipe(folder):
    folder.mkdir()
    os.mkfifo(folder / "metrics.jsonl")


def circle(folder):
    folder.symlink_to(folder)


@pytest.mark.parametrize("spoil", [empty, of_another_tool, garbled, nested, pipe, circle])
def test_what_is_no_run_is_left_out(run, tmp_path, spoil):
    spoil(tmp_path / "other")
    found, left_out = names(tmp_path / "other", run)
    assert found == ["mine"]
    assert len(left_out) == 1 and left_out[0].startswith("left out: ")
    assert str(tmp_path / "other") in left_out[0] and "; give " in left_out[0]


@pytest.mark.parametrize("path", ["gone", "x" * 5000, "a\nb"])
def test_what_does_not_exist_is_left_out_in_one_line(path):
    found, left_out = names(Path(path))
    assert found == [] and len(left_out) == 1 and "\n" not in left_out[0]


def test_a_run_without_settings_is_shown(run):
    (run / "config.yaml").unlink()
    found, left_out = names(run)
    assert found == ["mine"]
    unknown = "its settings and its size are unknown"
    assert left_out == [f"{run} has no config.yaml that can be read: {unknown}"]


def test_a_run_that_has_just_begun_is_shown(run):
    (run / "metrics.jsonl").write_text('{"kind": "st')
    assert names(run) == (["mine"], [])


def test_a_run_may_vanish_at_any_moment(run, monkeypatch):
    read = gathering.read_run

    def remove(path):
        shutil.rmtree(path)
        return read(path)

    monkeypatch.setattr(gathering, "read_run", remove)
    found, left_out = names(run)
    assert found == [] and left_out[0].startswith(f"left out: cannot read {run}")
