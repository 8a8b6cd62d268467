"""Whole runs on a small image tree: files, resuming, exit codes, evaluation."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from launch import evaluate as evaluate_command
from launch import train as train_command
from launch.command import command
from models import build_model
from pipeline.run.checkpoint import digest, load
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.train import session, trainer, watch
from tests import quick_where
from tests.train.tiny import fit, make_trainer

TIMES = ("seconds", "images_per_second", "data_wait")


@pytest.fixture
def arguments(cifar, tiny_arch, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {arch: tiny, num_classes: 2}, data: {batch_size: 8, eval_batch_size: 5}, seed: 3,"
        "train: {epochs: 3}, log: {every: 2, eta: 0}, checkpoint: {keep: 9}}"
    )
    return [str(config), f"data.path={cifar}", f"run.dir={tmp_path}/runs"]


def lines(folder, *, timeless=True):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in TIMES if timeless else ():
            record.pop(name, None)
    return records


def weights(folder, name="epoch_0003.pt"):
    return load(folder / "checkpoints" / name)["state_dict"]


def stop_at(monkeypatch, step, exception=KeyboardInterrupt):
    """Let training end at ``step`` as by SIGKILL (nothing saved) or by a signal."""
    original = trainer.Trainer.train_step

    def train_step(self, batch):
        if self.step == step:
            if exception is Interrupted:
                self.stop.signal = signal.SIGTERM
            else:
                raise exception
        original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)


@pytest.mark.pictures
def test_files_of_a_run_and_a_finished_one(arguments, tmp_path, capsys):
    train_command.main(arguments)
    folder = tmp_path / "runs" / "tiny"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "origin.json", "metrics.jsonl", "log.txt", "checkpoints", "plots",
    }  # fmt: skip
    records = lines(folder, timeless=False)
    assert [r["kind"] for r in records] == ["step", "step", "step", "epoch"] * 3
    epoch = records[-1]
    assert epoch["epoch"] == 2 and epoch["lr"] == pytest.approx(0.025)
    assert {"o", "t", "m", "train_loss", "train_top1", "val_loss", "val_top1", *TIMES} <= set(epoch)
    assert epoch["val_top5"] == 100
    assert "best: val top-1" in capsys.readouterr().err
    before = (folder / "metrics.jsonl").read_bytes()
    train_command.main(arguments)
    assert "finished" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="run.resume=none"):
        train_command.main([*arguments, "run.resume=none"])

    best = folder / "checkpoints" / "best.pt"
    evaluate_command.main([str(best), arguments[1]])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["images"] == 12
    wanted = load(best)["best"]
    assert result["top1"] == pytest.approx(wanted["val_top1"])
    assert result["loss"] == pytest.approx(wanted["val_loss"])


EXTRAS = {
    "plain": [],
    "ema": ["train.ema_decay=0.9", "train.label_smoothing=0.1"],
    "indicators": ["indicators.enabled=true", "indicators.official=true"],
    "bf16": ["train.precision=bf16", "optim.impl=torch"],
    "parts": ["train.grad_accumulation=2", "indicators.enabled=true"],
    "adam": ["optim.name=adam", "optim.lr=0.01", "optim.schedule=step", "optim.milestones=1,2"],
    "adamw": ["optim.name=adamw", "optim.lr=0.01", "optim.impl=torch", "optim.decay_norms=false"],
    "reestimated": ["train.reestimate_bn=2"],
    "reestimated average": ["train.reestimate_bn=2", "train.ema_decay=0.9"],
}


SLOW = {"parts", "adamw", "reestimated", "reestimated average"}  # four runs each


@pytest.mark.parametrize("extra", quick_where(lambda extra: extra not in SLOW, *EXTRAS))
def test_a_resumed_run_is_bit_identical(arguments, tmp_path, monkeypatch, extra):
    arguments = [*arguments, *EXTRAS[extra], "deterministic=true", "checkpoint.every_steps=2"]
    train_command.main([*arguments, "run.name=whole"])
    for step, exception in ((8, KeyboardInterrupt), (11, Interrupted)):
        with monkeypatch.context() as patch:
            stop_at(patch, step, exception)
            with pytest.raises(exception):
                train_command.main([*arguments, "run.name=parts"])
    train_command.main([*arguments, "run.name=parts"])
    torch.use_deterministic_algorithms(False)
    whole, parts = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert lines(whole) == lines(parts)
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(parts).items())
    saved = [load(each / "checkpoints" / "epoch_0003.pt") for each in (whole, parts)]
    for key in ("optimizer", "ema", "reestimated"):
        assert len({digest(state[key]) for state in saved}) == 1


def test_a_damaged_newest_checkpoint_is_passed_over(arguments, tmp_path, capsys):
    train_command.main(arguments)
    folder = tmp_path / "runs" / "tiny"
    expected, records = weights(folder), lines(folder)
    path = folder / "checkpoints" / "epoch_0003.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    (folder / "checkpoints" / "best.pt").unlink()  # else the run would go on from it
    train_command.main(arguments)
    assert "epoch_0003.pt is no checkpoint" in capsys.readouterr().err
    assert all(torch.equal(value, expected[key]) for key, value in weights(folder).items())
    assert lines(folder) == records


@pytest.mark.parametrize(
    "change",
    ["data.batch_size=10", "model.arch=resnet20_bireal", "estimator.name=ste", "train.epochs=4"],
)
def test_another_training_is_not_resumed(arguments, monkeypatch, change):
    stop_at(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        train_command.main(arguments)
    with pytest.raises(UserError, match=change.split("=")[0]):
        train_command.main([*arguments, change])


def test_other_images_are_not_resumed(arguments, cifar, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train_command.main(arguments)
    extra = cifar / "train" / "dark" / "extra.png"
    Image.new("RGB", (32, 32)).save(extra)
    try:
        with pytest.raises(UserError, match="train images"):
            train_command.main(arguments)
    finally:
        extra.unlink()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("model.num_classes=3", "model.num_classes=null"),
        ("data.path=/nonexistent", "data.path"),
        ("data.path=null", "data.path"),
        ("train.device=cuda", "train.device"),
        ("run.dir=/dev/null/x", "run.dir"),
        ("model.weights=/nonexistent", "/nonexistent"),
        ("run.resume=/nonexistent", "/nonexistent"),
        ("optim.impl=apex", "optim.impl"),
    ],
)
def test_bad_input_is_named(arguments, change, word):
    with pytest.raises(UserError, match=word) as caught:
        train_command.main([*arguments, change])
    assert "\n" not in str(caught.value)


@pytest.mark.pictures
@pytest.mark.parametrize("end", [Diverged("not finite"), Interrupted(signal.SIGTERM, "saved")])
def test_a_run_that_ends_early_has_a_picture(arguments, tmp_path, monkeypatch, end):
    pytest.importorskip("matplotlib")
    original = trainer.Trainer.train_step

    def train_step(self, batch):
        if self.step == 6:
            raise end
        original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    with pytest.raises(type(end)):
        train_command.main(arguments)
    assert (tmp_path / "runs/tiny/plots/training.png").exists()


def test_divergence_says_where(arguments, tmp_path):
    with pytest.raises(Diverged, match=r"not finite (since|at) step \d+ \(epoch \d\)"):
        train_command.main([*arguments, "optim.lr=1e6", "optim.weight_decay=1e6"])


def test_fp16_skips_a_bad_step_and_keeps_the_statistics(tmp_path, monkeypatch):
    original = trainer.Trainer.train_step

    def train_step(self, batch):
        if self.step == 3:
            batch = batch._replace(images=batch.images * float("nan"))
        original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    options = ["train.precision=fp16", "train.epochs=1"]
    trained = fit(make_trainer(tmp_path, *options), tmp_path)
    assert all(value.isfinite().all() for value in trained.state.model.state_dict().values())
    monkeypatch.setattr(watch, "MAX_SKIPPED", 1)
    with pytest.raises(Diverged, match="1 losses in a row"):
        fit(make_trainer(tmp_path, *options), tmp_path / "other")


def test_fork_and_fine_tune(arguments, tmp_path):
    train_command.main(arguments)
    source = tmp_path / "runs/tiny/checkpoints/epoch_0002.pt"
    train_command.main([*arguments, f"run.resume={source}", "run.name=fork"])
    expected = weights(tmp_path / "runs" / "tiny")
    assert all(torch.equal(v, expected[k]) for k, v in weights(tmp_path / "runs/fork").items())
    with pytest.raises(UserError, match="run.resume"):
        train_command.main([*arguments, f"run.resume={source}", "run.name=fork"])
    official = tmp_path / "official.pth.tar"
    content = {"state_dict": build_model("resnet20").state_dict(), "model": "resnet20_1w1a"}
    torch.save({**content, "epoch": 1, "best_prec1": 0.0}, official)
    tuned = "model.arch=resnet20", f"model.weights={official}", "run.name=tuned"
    train_command.main([*arguments, *tuned])
    with pytest.raises(UserError, match="model.weights"):
        train_command.main([*arguments, f"run.resume={official}", "run.name=no"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("x"), 2), (Diverged("x"), 3), (Interrupted(15, "x"), 143), (None, 0)],
)
def test_exit_codes(error, code, monkeypatch, capsys):
    def main(_):
        if error:
            raise error

    with pytest.raises(SystemExit) as caught:
        command(main)
    assert caught.value.code == code
    if code in (2, 3):
        assert capsys.readouterr().err == "error: x\n"


@pytest.mark.parametrize(
    ("error", "code", "alerts"),
    [(UserError("x"), 2, []), (Diverged("x"), 3, ["x"]), (Interrupted(15, "x"), 143, []),
     (KeyError("x"), 1, []), (None, 0, [])],
)  # fmt: skip
def test_the_records_end_with_the_exit_code_of_the_command(
    error, code, alerts, arguments, monkeypatch
):
    def fit(_):
        if error:
            raise error

    told, codes = [], []
    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    monkeypatch.setattr(session, "Outcome", lambda *_: None)  # nothing was trained
    monkeypatch.setattr(session.Recorder, "alert", lambda _, text: told.append(text))
    monkeypatch.setattr(session.Recorder, "close", lambda _, number: codes.append(number))
    with pytest.raises(type(error)) if error else contextlib.nullcontext():
        train_command.main(arguments)
    assert (codes, told) == ([code], alerts)


def test_a_signal_saves_and_exits(arguments, tmp_path):
    """A real process: SIGTERM in training gives 143 and a checkpoint in mid-epoch."""
    words = *arguments, "model.arch=resnet20", "train.epochs=1000", "log.every=1"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.train", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 3/5" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 143, rest
    assert "Traceback" not in rest and "saved" in rest


def test_a_signal_before_the_training_holds_for_restarts(arguments, tmp_path, monkeypatch):
    def load(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with monkeypatch.context() as patch:
        patch.setattr(session, "build_loaders", load)
        with pytest.raises(Interrupted, match="before the training began"):
            train_command.main(arguments)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(Interrupted, match="was asked to stop") as caught:
        train_command.main(arguments)
    assert caught.value.signal == signal.SIGTERM
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # the job, queued again
    train_command.main(arguments)
    assert lines(tmp_path / "runs" / "tiny")[-1]["epoch"] == 2


def test_the_wait_for_the_device_is_timed(arguments, tmp_path, monkeypatch):
    """A GPU works while the host has gone on: its time shows where the host looks at a result."""
    original = trainer.Trainer._check_finite

    def check_finite(self):
        if self.state.batch == len(self.loader):
            time.sleep(2)
        original(self)

    monkeypatch.setattr(trainer.Trainer, "_check_finite", check_finite)
    train_command.main([*arguments, "train.epochs=1"])
    record = lines(tmp_path / "runs" / "tiny", timeless=False)[-1]
    assert 40 / record["images_per_second"] > 2 and record["seconds"] > 2
