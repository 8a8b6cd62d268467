"""What a run records: metrics.jsonl, and wandb with its failures."""

import errno
import json
import logging
import os
import sys
from types import SimpleNamespace

import pytest

from pipeline.run import console
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.run.recorder import JsonLines, Recorder, Wandb
from tests import ROOT


@pytest.fixture
def warnings(monkeypatch, caplog):
    """The warnings so far."""
    monkeypatch.setattr(console.logger, "propagate", True)
    caplog.set_level(logging.WARNING, console.logger.name)
    return lambda: caplog.messages


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; ``fails`` names what raises."""

    class Package:
        fails = ""
        calls: list = []

        def init(self, **options):
            self._do("init", **options)
            return SimpleNamespace(
                define_metric=lambda name, **options: None,
                log=lambda numbers: self._do("log", numbers=numbers),
                finish=lambda exit_code: self._do("finish", exit_code=exit_code),
            )

        def _do(self, name, /, **what):
            self.calls.append((name, what))
            if name == self.fails:
                raise RuntimeError(f"no {name} today\nsecond line")

    package = Package()
    package.calls = []
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


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


def test_planted_links_are_not_followed(tmp_path, wandb):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs\n")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "log.txt", "wandb_id", ".wandb_id.tmp"):
        (folder / name).symlink_to(theirs if name != "wandb_id" else tmp_path / "nothing")
    with pytest.raises(OSError, match="it is a link"):
        JsonLines(folder / "metrics.jsonl")
    with pytest.raises(OSError, match="it is a link"):
        console.start_file(folder / "log.txt")
    Wandb("offline", "project", folder, {}).finish()
    assert theirs.read_text() == "theirs\n" and not (tmp_path / "nothing").exists()


def test_wandb_gets_the_numbers_and_one_identity(tmp_path, wandb):
    for _ in range(2):
        run = Wandb("offline", "project", tmp_path, {"seed": 1})
        record = {"kind": "epoch", "epoch": 1, "val_top1": 50.0, "indicators": {"a": {"b": 1}}}
        run.write(record, 7)
        run.finish()
    (init, first), logged, finished, (_, second), *_ = wandb.calls
    assert init == "init" and first["mode"] == "offline" and first["resume"] == "allow"
    assert first["id"] == second["id"]  # a resumed run goes on in the same curve
    numbers = {"epoch/epoch": 1, "epoch/val_top1": 50.0, "epoch/indicators/a/b": 1}
    assert logged == ("log", {"numbers": {**numbers, "step": 7, "epoch": 1}})
    assert finished == ("finish", {"exit_code": 0})


def history(path):
    """The records of a .wandb file: 7 bytes of header, then a LevelDB log in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            yield record


@pytest.mark.slow
def test_wandb_keeps_what_a_resumed_run_repeats(tmp_path, monkeypatch):
    """A real file of wandb's: nested figures, axes of ours, and steps that fall."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = Wandb("offline", "project", tmp_path, {"seed": 1})
    for step in (5, 6, 3, 4):
        run.write({"kind": "step", "step": step, "epoch": 0, "loss": 0.5}, step)
    run.write({"kind": "epoch", "epoch": 0, "indicators": {"total": {"error": 2.5}}}, 6)
    run.finish()
    records = list(history(next(tmp_path.glob("wandb/offline-run-*/*.wandb"))))
    found = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert [each["step"] for each in found] == [5, 6, 3, 4, 6]
    assert all(each["step/loss"] == 0.5 for each in found[:4])
    assert found[4]["epoch/indicators/total/error"] == 2.5 and found[4]["epoch"] == 0
    axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in records
            if r.WhichOneof("record_type") == "metric"}  # fmt: skip
    assert axes["step/*"] == "step" and axes["epoch/*"] == "epoch"


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_wandb_failure_is_one_warning(tmp_path, wandb, fails, warnings):
    wandb.fails = fails
    run = Wandb("online", "project", tmp_path, {})
    for step in range(3):
        run.write({"kind": "step", "loss": 1.0}, step)
    run.finish(1)
    assert warnings() == [f"wandb is off for this run: no {fails} today"]
    assert sum(name == fails for name, _ in wandb.calls) == 1


def test_wandb_that_is_not_installed_is_one_warning(tmp_path, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Wandb("offline", "project", tmp_path, {}).write({"kind": "step"}, 0)
    assert len(warnings()) == 1 and "wandb is off" in warnings()[0]


def test_disabled_wandb_is_not_even_imported(tmp_path, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Wandb("disabled", "project", tmp_path, {}).finish()
    assert warnings() == [] and list(tmp_path.iterdir()) == []


def test_a_recorder_that_is_not_open_takes_records_nowhere():
    recorder = Recorder()
    recorder.write({"kind": "step"}, 1)
    recorder.close()
    assert recorder.size() == 0


def test_a_recorder_feeds_the_file_and_wandb(tmp_path, wandb):
    overrides = [f"run.dir={tmp_path}", "log.wandb=offline"]
    config = load_config(ROOT / "configs/quickstart.yaml", overrides)
    config.run_folder.mkdir()
    recorder = Recorder()
    recorder.open(config)
    recorder.write({"kind": "step", "loss": 2.0}, 7)
    recorder.close(1)
    assert (config.run_folder / "metrics.jsonl").stat().st_size == recorder.size() > 0
    assert [name for name, _ in wandb.calls] == ["init", "log", "finish"]
    assert wandb.calls[-1][1] == {"exit_code": 1}
