"""What a run records in metrics.jsonl and log.txt, and what keeps it from doing so."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from pipeline.run import console
from pipeline.run.errors import UserError
from pipeline.run.recorder import JsonLines, Recorder


def test_json_lines_go_on_where_the_checkpoint_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    first.write({"a": 1})
    size = first.size()
    first.write({"b": 2})
    resumed = JsonLines(path, size)
    resumed.write({"c": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_missing_json_lines_are_noticed(tmp_path, warnings):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    JsonLines(path, 100)
    assert path.read_text() == "{}\n" and "lines are missing" in warnings()[0]


class Full:
    """A file without room."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run(tmp_path):
    """An open recorder beside a log, and its folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    recorder = Recorder()
    recorder.lines = JsonLines(folder / "metrics.jsonl")
    console.start_console()
    console.start_file(folder / "log.txt")
    return SimpleNamespace(recorder=recorder, folder=folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
@pytest.mark.parametrize("fault", ["full", "removed", "folder removed"])
def test_records_that_cannot_be_written_are_one_line(run, name, fault, capsys):
    run.recorder.write({"step": 1}, 1)
    console.logger.info("a line")
    if fault == "full":
        log = next(h for h in console.logger.handlers if hasattr(h, "file"))
        lines = run.recorder.lines.file if name == "metrics.jsonl" else log.file
        lines.file = Full(lines.file)
    elif fault == "removed":
        (run.folder / name).unlink()
    else:
        run.folder.rename(run.folder.with_name("moved"))
        name = "metrics.jsonl"  # which is looked at first
    console.logger.info("another line")
    with pytest.raises(UserError) as error:
        run.recorder.write({"step": 2}, 2)
    reason = "No space left on device" if fault == "full" else "it was removed or replaced"
    assert str(error.value) == (
        f"cannot write {run.folder / name}: {reason}; repair that or make room, and start it again "
        "to go on"
    )
    said = capsys.readouterr().err
    assert said == "a line\nanother line\n"  # no traceback, no "Logging error"


def test_a_line_that_found_no_room_is_written_later(run):
    lines = run.recorder.lines.file
    good, lines.file = lines.file, Full(lines.file)
    with pytest.raises(UserError, match="No space left"):
        run.recorder.write({"step": 1}, 1)
    lines.file = good
    run.recorder.write({"step": 2}, 2)
    assert (run.folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_planted_links_are_not_followed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs\n")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "log.txt"):
        (folder / name).symlink_to(theirs)
    with pytest.raises(OSError, match="it is a link"):
        JsonLines(folder / "metrics.jsonl")
    with pytest.raises(OSError, match="it is a link"):
        console.start_file(folder / "log.txt")
    assert theirs.read_text() == "theirs\n"


def test_a_recorder_that_is_not_open_takes_records_nowhere():
    recorder = Recorder()
    recorder.write({"kind": "step"}, 1)
    recorder.close()
    assert recorder.size() == 0
