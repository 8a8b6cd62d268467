"""The trials of a study at work, with a program in the place of a training."""

import json
import logging
import os
import signal
import sys
import threading
import time

import pytest

from launch.command import find_config
from pipeline.run import trials
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.study import read_study
from pipeline.run.trials import exit_code, run_trials, share, tell

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
# What stands for a training. It goes on after the epochs that are recorded; ste diverges, dsq is
# killed, ede takes its time, and rbnn may not be started.
TRAINING = """
import json, os, signal, sys, time
from pathlib import Path

words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
if "--check" in sys.argv:
    if words["estimator.name"] == "rbnn":
        print("error: ears", file=sys.stderr)
        sys.exit(2)
    sys.exit()

def save(number, _):
    print("saved", flush=True)
    sys.exit(128 + number)

signal.signal(signal.SIGINT, save)
folder = Path(words["run.dir"], words["run.name"])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "started.jsonl").open("a") as file:
    at_work = len(list(folder.parent.glob("*/at_work")))
    threads = os.environ.get("OMP_NUM_THREADS")
    file.write(json.dumps([words["run.name"], at_work, threads]) + "\\n")
(folder / "at_work").touch()
print("a line of", words["run.name"], flush=True)
records = folder / "metrics.jsonl"
done = records.read_text().count("\\n") if records.exists() else 0
for epoch in range(done, 2):
    time.sleep(60 if words["estimator.name"] == "ede" and epoch else 0.2)
    with records.open("a") as file:
        file.write(json.dumps({"kind": "epoch", "epoch": epoch, "seconds": 0.2}) + "\\n")
    if words["estimator.name"] == "ste":
        (folder / "at_work").unlink()
        print("error: the loss is not finite", flush=True)
        sys.exit(3)
    if words["estimator.name"] == "dsq":
        (folder / "at_work").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
(folder / "at_work").unlink()
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The study of these estimators; each of its trials is two epochs of ``TRAINING``."""
    command = [sys.executable, "-c", TRAINING]
    monkeypatch.setattr(trials, "_command", lambda words: [*command, *words])

    def read(*estimators):
        path = tmp_path / "mine.yaml"
        runs = json.dumps([{"estimator.name": estimators}]).replace('"', "")
        text = "overrides: {train.epochs: 2, optim.warmup_epochs: 0}"
        path.write_text(f"config: cifar10_resnet20\n{text}\nruns: {runs}")
        return read_study(path, [f"run.dir={tmp_path}/runs"], find_config)

    return read


def started(study):
    """What each trial found when it began: its name, how many were at work, its threads."""
    path = study.folder / "started.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_fails_leaves_the_others_alone(read, caplog):
    caplog.set_level(logging.INFO, "reste")
    study, drawn = read("ste", "dsq", "reste"), []
    failures = run_trials(study, 1, lambda: drawn.append(1))
    assert [name for name, *_ in started(study)] == [trial.name for trial in study.trials]
    assert [(f.trial.name, f.code) for f in failures] == [
        ("ste-seed1234", 3), ("dsq-seed1234", 128 + signal.SIGKILL),
    ]  # fmt: skip
    assert failures[0].reason == "error: the loss is not finite"
    assert len(drawn) == 3 and study.trials[2].is_finished
    assert "reste-seed1234  a line of reste-seed1234" in caplog.messages
    tell(failures)
    assert "ste-seed1234 ended with 3 (error: the loss is not finite); alone: " in caplog.text
    assert exit_code(failures) == 1 and exit_code(failures[:1]) == 3


def test_the_next_start_does_what_is_left(read):
    study = read("reste", "dsq")
    assert [failure.code for failure in run_trials(study, 1, lambda: None)] == [137]
    assert study.trials[1].epochs_done == 1  # of 2
    assert [f.code for f in run_trials(study, 1, lambda: None)] == [137]
    assert study.open == []
    names = [name for name, *_ in started(study)]
    assert names == ["reste-seed1234", "dsq-seed1234", "dsq-seed1234"]
    assert run_trials(study, 1, lambda: None) == []
    assert len(started(study)) == 3


def test_several_at_a_time_share_the_cores(read, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("pipeline.run.trials.cores", lambda: 8)
    study = read("reste", "approxsign", "fda", "swishsign", "rbnn")
    assert run_trials(study, 2, lambda: None) == []
    assert max(at_work for _, at_work, _ in started(study)) == 1  # beside itself
    assert {threads for *_, threads in started(study)} == {"4"}


def test_a_signal_is_passed_on_and_ends_it(read, caplog):
    caplog.set_level(logging.INFO, "reste")
    study = read("reste", "ede", "fda")

    def interrupt():
        while study.trials[1].epochs_done < 1:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="^interrupted; start it again to go on$") as caught:
        run_trials(study, 1, lambda: None)
    assert caught.value.exit_code == 130
    assert "ede-seed1234  saved" in caplog.messages
    assert [trial.epochs_done for trial in study.trials] == [2, 1, 0]
    assert len(started(study)) == 2


def test_a_mistake_is_told_before_anything_begins(read):
    study = read("rbnn", "reste")
    with pytest.raises(UserError, match="^ears$"):
        run_trials(study, 1, lambda: None)
    assert started(study) == []


def test_the_time_that_is_left_is_told_as_soon_as_it_is_known(read, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "reste")
    monkeypatch.setattr("pipeline.run.estimate.LOOK_EVERY", 0)
    study = read("reste", "fda")
    run_trials(study, 1, lambda: None)
    told = [line for line in caplog.messages if line.startswith("about ")]
    assert "left: 2 trials with 3 epochs of 0.2 s, and 0.0 s besides for each" in told[0]
    assert "left: 1 trials with 2 epochs of 0.2 s, and " in told[1] and len(told) == 2


def test_each_trial_has_a_gpu_as_far_as_there_are_some(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the person's own choice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = [share(place, 3) for place in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "5", "2"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"3"}
    assert share(0, 1) == {}  # alone it has all
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in share(0, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [share(place, 2)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["0", "1"]
