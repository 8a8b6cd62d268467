"""What a run says: metrics.jsonl, wandb and its failures, progress with and without a terminal."""

import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest

from pipeline.run import console, recorder
from pipeline.run.errors import UserError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def speak(monkeypatch, stream):
    """Let the logger, and whoever else writes to stderr, write to ``stream``."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console.logger, "handlers", [])
    console.start_console()
    return stream


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
                log=lambda numbers, step: self._do("log", numbers=numbers, step=step),
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
    first = recorder.JsonLines(path)
    first.write({"a": 1})
    size = first.size()
    first.write({"b": 2})
    resumed = recorder.JsonLines(path, size)
    resumed.write({"c": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_missing_json_lines_are_noticed(tmp_path, warnings):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    recorder.JsonLines(path, 100)
    assert path.read_text() == "{}\n" and "lines are missing" in warnings()[0]


def test_a_full_disk_is_one_line():
    full = recorder.JsonLines.__new__(recorder.JsonLines)
    full.path = "metrics.jsonl"
    try:
        full.file = open("/dev/full", "w")  # noqa: SIM115
    except OSError:
        pytest.skip("needs /dev/full")
    with pytest.raises(UserError, match=r"cannot write metrics.jsonl: No space left.*; make room"):
        full.write({"a": 1})


def test_wandb_gets_the_numbers_and_one_identity(tmp_path, wandb):
    for _ in range(2):
        run = recorder.Wandb("offline", "project", tmp_path, {"seed": 1})
        run.write({"kind": "epoch", "val_top1": 50.0, "indicators": {"a": 1}}, 7)
        run.finish()
    (init, first), logged, finished, (_, second), *_ = wandb.calls
    assert init == "init" and first["mode"] == "offline" and first["resume"] == "allow"
    assert first["id"] == second["id"]  # a resumed run goes on in the same curve
    assert logged == ("log", {"numbers": {"epoch/val_top1": 50.0}, "step": 7})
    assert finished == ("finish", {"exit_code": 0})


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_wandb_failure_is_one_warning(tmp_path, wandb, fails, warnings):
    wandb.fails = fails
    run = recorder.Wandb("online", "project", tmp_path, {})
    for step in range(3):
        run.write({"kind": "step", "loss": 1.0}, step)
    run.finish(1)
    assert warnings() == [f"wandb is off for this run: no {fails} today"]
    assert sum(name == fails for name, _ in wandb.calls) == 1


def test_wandb_that_is_not_installed_is_one_warning(tmp_path, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recorder.Wandb("offline", "project", tmp_path, {}).write({"kind": "step"}, 0)
    assert len(warnings()) == 1 and "wandb is off" in warnings()[0]


def test_disabled_wandb_is_not_even_imported(tmp_path, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recorder.Wandb("disabled", "project", tmp_path, {}).finish()
    assert warnings() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_progress_is_a_bar_or_plain_lines(stream, monkeypatch):
    stderr = speak(monkeypatch, stream)
    with console.ProgressBar("epoch 1/2", 4, done=1) as bar:
        bar.advance()
        bar.show(2, 3725.0, loss=1.23456, top1=50.0)
    text = stderr.getvalue()
    if stderr.isatty():
        assert "epoch 1/2" in text and "2/4" in text and "loss 1.235  top1 50" in text
        assert "\033[" in text
    else:
        assert text == "epoch 1/2  step 2/4  loss 1.235  top1 50  1:02:05 left\n"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_colours_only_on_a_terminal(stream, monkeypatch):
    stderr = speak(monkeypatch, stream)
    console.logger.info("plain")
    console.logger.warning("look")
    console.logger.info(console.bold("done"))
    assert re.sub(r"\033\[\d+m", "", stderr.getvalue()) == "plain\nwarning: look\ndone\n"
    assert ("\033[" in stderr.getvalue()) == stderr.isatty()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36610, "10:10:10")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text
