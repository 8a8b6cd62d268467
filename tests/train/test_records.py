"""Records that cannot be written, and links that were planted: in whole trainings."""

import errno
import json
import os
import subprocess
import sys

import pytest

from launch import train as train_command
from pipeline.prepare.verify import verify_tree
from pipeline.run.checkpoint import load
from pipeline.run.errors import UserError
from pipeline.run.recorder import JsonLines
from pipeline.run.streams import Courtesy
from pipeline.train.trainer import Trainer
from tests import ROOT
from tests.train.tiny import fit, make_trainer

EVERY = "log.every=1"


def before(monkeypatch, name, act, *, at):
    """Call ``act`` before the method ``name`` of the trainer, at step ``at``."""
    original = getattr(Trainer, name)

    def method(self, *arguments):
        if self.step == at:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, name, method)


def recorded(trainer, folder, store):
    """Let ``trainer`` save in ``store``."""
    trainer.store.folder = store
    return fit(trainer, folder)


def kinds(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [(each["kind"], each["epoch"]) for each in map(json.loads, text.splitlines())]


@pytest.mark.parametrize("place", ["in the run's folder", "elsewhere"])
def test_removed_records_end_a_run_with_a_saved_state(tmp_path, monkeypatch, place):
    folder = tmp_path / "run"
    store = folder / "checkpoints" if place != "elsewhere" else tmp_path / "checkpoints"

    def remove():
        if place == "elsewhere":
            (folder / "metrics.jsonl").unlink()
        else:
            folder.rename(tmp_path / "moved")

    before(monkeypatch, "train_step", remove, at=8)
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl: it was removed") as error:
        recorded(make_trainer(tmp_path, EVERY), folder, store)
    path = store / "step_9.pt"
    remedy = "repair that or make room, and start it again to go on from"
    assert str(error.value).endswith(f"; {remedy} {path}, which was saved")
    assert load(path)["step"] == 9


def test_an_epoch_whose_record_is_lost_is_evaluated_again(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        before(patch, "_evaluate", lambda: (folder / "metrics.jsonl").rename(tmp_path / "m"), at=12)
        with pytest.raises(UserError, match="cannot write .*metrics.jsonl"):
            recorded(make_trainer(tmp_path, EVERY), folder, tmp_path)
    (tmp_path / "m").rename(folder / "metrics.jsonl")  # the remedy
    state = load(tmp_path / "step_12.pt")
    assert state["epoch"] == 1 and state["batch"] == 6 and state["best"]["epoch"] == 0
    again = make_trainer(tmp_path, EVERY)
    again.restore(state)
    again.recorder.lines = JsonLines(folder / "metrics.jsonl", state["metrics_size"])
    again.fit()
    expected = [(kind, epoch) for epoch in range(3) for kind in ["step"] * 6 + ["epoch"]]
    assert kinds(folder) == expected


def test_a_state_that_finds_no_room_either_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def fail(self, state, *, best=False):
        raise UserError("cannot write checkpoint: No space left on device; make room")

    monkeypatch.setattr("pipeline.run.checkpoint.CheckpointStore.save", fail)
    before(monkeypatch, "train_step", lambda: (folder / "metrics.jsonl").unlink(), at=2)
    with pytest.raises(UserError, match="^cannot write checkpoint: No space left"):
        recorded(make_trainer(tmp_path, EVERY), folder, tmp_path)


@pytest.fixture
def arguments(cifar, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8}, train: {epochs: 1, device: cpu},"
        "log: {every: 1}}"
    )
    return [str(config), f"data.path={cifar}", f"run.dir={tmp_path}/runs"]


def test_a_removed_log_ends_a_run(arguments, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs/tiny"
    with monkeypatch.context() as patch:
        before(patch, "train_step", lambda: (folder / "log.txt").unlink(), at=2)
        with pytest.raises(
            UserError, match=r"log.txt: it was removed .*step_3.pt, which was saved"
        ):
            train_command.main(arguments)
    train_command.main(arguments)  # started again, it goes on
    assert "going on after epoch 0, batch 3" in (folder / "log.txt").read_text()
    assert kinds(folder) == [("step", 0)] * 5 + [("epoch", 0)]
    assert "Logging error" not in capsys.readouterr().err


def test_a_console_that_fails_does_not_end_a_run(arguments, tmp_path, monkeypatch):
    class Broken:
        encoding = "ascii"

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

        def flush(self):
            self.write("")

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Courtesy(Broken()))
    train_command.main(arguments)
    assert kinds(tmp_path / "runs/tiny")[-1] == ("epoch", 0)


def test_the_first_line_comes_before_the_data_are_read(arguments, capsys):
    with pytest.raises(UserError):
        train_command.main([*arguments, "data.path=/nonexistent"])
    first, threads = capsys.readouterr().err.splitlines()[-2:]
    assert first.endswith("runs/tiny: reading /nonexistent") and " thread" in threads


PLANTED = {
    "records": ["metrics.jsonl"],
    "log": ["log.txt"],
    "checkpoint": ["checkpoints/epoch_0001.pt", "checkpoints/best.pt"],
    "others": [
        "config.yaml", ".config.yaml.tmp", "origin.json", "job.json", ".job.json.tmp",
        "checkpoints/best.pt", "checkpoints/.epoch_0001.pt.tmp", "checkpoints/.best.pt.tmp",
        "plots/training.png", "plots/.training.png.tmp",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_what_others_planted_in_a_run_is_not_written_through(
    arguments, tmp_path, monkeypatch, name
):
    theirs, run = tmp_path / "theirs", tmp_path / "runs" / "tiny"
    theirs.write_text("theirs")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    for file in PLANTED[name]:
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).symlink_to(theirs)
    try:
        train_command.main(arguments)
    except UserError as error:
        assert "\n" not in str(error)
    assert theirs.read_text() == "theirs"


def test_what_others_planted_beside_a_report_is_not_written_through(tmp_path, cifar):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    for name in (".report.tmp", "report", "report.state"):
        (tmp_path / name).symlink_to(theirs)
        if name == ".report.tmp":
            assert verify_tree(cifar, tmp_path / "report", 1) == 0
            (tmp_path / "report").unlink()
            (tmp_path / "report.state").unlink()
        else:
            with pytest.raises(UserError, match="report"):
                verify_tree(cifar, tmp_path / "report", 1)
            (tmp_path / name).unlink()
        assert theirs.read_text() == "theirs", name


@pytest.mark.slow
def test_a_locale_without_umlauts(cifar, tmp_path):
    """Real processes that know ASCII alone, with names in UTF-8 and names that are no text."""
    latin = os.fsencode(tmp_path) + b"/caf\xe9"
    os.symlink(cifar, latin)
    (tmp_path / "größe.yaml").write_text(
        "# für alle\n{model: {num_classes: 2}, data: {batch_size: 8}, train: {epochs: 1}}\n",
        encoding="utf-8",
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
           "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", "größe.yaml", b"data.path=" + latin],
        cwd=tmp_path,
        env=env,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/größe/checkpoints/best.pt").exists()
