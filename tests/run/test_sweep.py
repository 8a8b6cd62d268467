"""Sweeps of wandb: the file that is shipped, trials that do not collide, and agents that die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kernels import ESTIMATORS
from launch import train as train_command
from pipeline.report.runs import read_run
from pipeline.report.sync import with_steps
from pipeline.run.checkpoint import load
from pipeline.run.commands import shipped_configs
from pipeline.run.config import load_config
from pipeline.run.errors import Interrupted, UserError
from tests import PATIENCE, ROOT
from tests.data.fixtures import cifar_tree
from tests.run.fake_wandb import transactions

SWEEP = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends with an agent")
# An agent of wandb's own that starts one trial and waits. The words: the sweep's command and the
# trial, in JSON.
AGENT = """
import json, sys, time
from wandb.wandb_agent import Agent
command, trial = map(json.loads, sys.argv[1:])
agent = Agent(None, None, sweep_id="s")
agent._sweep_command = command
agent._command_run(trial)
print(agent._run_processes[trial["run_id"]]._popen.pid, flush=True)
time.sleep(10000)
"""


@pytest.fixture
def started(monkeypatch):
    """A function that makes this process a trial of a sweep."""

    def do(trial):
        monkeypatch.setenv("WANDB_SWEEP_ID", "s")
        monkeypatch.setenv("WANDB_RUN_ID", trial)

    return do


@pytest.fixture
def words(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8, eval_batch_size: 5}, "
        "train: {epochs: 1}, log: {every: 1, eta: 0}}"
    )
    data = cifar_tree(tmp_path / "data")
    return [str(config), f"data.path={data}", f"run.dir={tmp_path}/runs"]


def test_the_shipped_sweep_is_one_that_its_command_takes():
    program, *command = SWEEP["command"]
    assert program == "${env}" and command[:2] == ["${program}", "train"]
    assert command[-1] == "${args_no_hyphens}" and SWEEP["program"] == "./reste"
    estimators, o_end, seeds = SWEEP["parameters"].values()
    assert set(estimators["values"]) == set(ESTIMATORS) and len(seeds["values"]) > 1
    path, fixed = shipped_configs()[command[2]], command[3:-1]
    for end in (o_end["min"], o_end["max"]):
        for name in estimators["values"]:
            trial = [f"estimator.name={name}", f"estimator.o_end={end}", "seed=1"]
            assert load_config(path, [*fixed, *trial]).estimator.o_end == end
    assert set(SWEEP["parameters"]) == {"estimator.name", "estimator.o_end", "seed"}
    assert SWEEP["metric"]["name"] == "epoch/val_top1"


def test_trials_do_not_collide_and_have_their_name_again(wandb, words, started, tmp_path):
    for trial in ("one", "two"):
        started(trial)
        train_command.main([*words, "log.wandb=online"])
        (init,) = wandb.named("init")
        assert init["name"] == f"tiny-{trial}" and init["resume"] == "allow"
        assert not {"id", "project"} & init.keys()  # the agent has said that
        assert (tmp_path / f"runs/tiny-{trial}/wandb_id").read_text() == trial
        wandb.calls.clear()
    lengths = (tmp_path / "runs/tiny-one/metrics.jsonl").stat().st_size
    started("one")
    train_command.main([*words, "log.wandb=online"])  # it is finished
    assert wandb.calls == []
    assert (tmp_path / "runs/tiny-one/metrics.jsonl").stat().st_size == lengths
    assert len([*(tmp_path / "runs").iterdir()]) == 2


def test_one_name_for_every_trial_is_refused(wandb, words, started):
    for trial in ("one", "one"):  # again: it is the same
        started(trial)
        train_command.main([*words, "log.wandb=online", "run.name=x"])
    started("two")
    with pytest.raises(UserError, match="run.name is x for every trial of this sweep; leave it"):
        train_command.main([*words, "log.wandb=online", "run.name=x"])
    train_command.main([*words, "log.wandb=online"])


@pytest.mark.parametrize(
    ("code", "trial", "goes_on"),
    [(138, "one", True), (143, "one", False), (0, "one", False), (138, None, False)],
)
def test_only_a_trial_that_lost_its_machine_is_given_to_another_agent(
    wandb, words, started, monkeypatch, code, trial, goes_on
):
    """One that was stopped in the sweep's page, by SIGTERM, stays stopped."""
    if trial:
        started(trial)
    monkeypatch.setattr("pipeline.train.trainer.Trainer.fit", lambda _: end(code))
    with contextlib.suppress(BaseException):
        train_command.main([*words, "log.wandb=online"])
    (finish,) = wandb.named("finish")
    assert finish == {"exit_code": code} and len(wandb.named("mark_preempting")) == goes_on


def end(code):
    if code:
        raise Interrupted(code - 128, "x")


@linux
@pytest.mark.slow
def test_a_trial_ends_saved_with_its_agent_and_goes_on_with_another(words, tmp_path):
    """wandb's agent, and a real training; SIGKILL reaches the agent alone."""
    pytest.importorskip("wandb")
    command = [*SWEEP["command"][:3], *words, "log.wandb=offline", "${args_no_hyphens}"]
    folder = tmp_path / "runs/tiny-t1"
    with agent(command, tmp_path, {"train.epochs": 500}) as pid:
        assert wait_until(lambda: lines(folder) > 6)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
    *_, (_, steps) = with_steps(read_run(folder).records)
    assert max(load(path)["step"] for path in folder.glob("checkpoints/*.pt")) == steps
    epochs = lines(folder) // 6  # of 5 steps each
    with agent(command, tmp_path, {"train.epochs": 500}):
        assert wait_until(lambda: lines(folder) // 6 > epochs)
    assert f"going on after epoch {steps // 5}, batch {steps % 5}" in said(folder)
    assert len([*(tmp_path / "runs").iterdir()]) == 1
    (first, *_) = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    run = next(each.run for each in transactions(first) if each.WhichOneof("record_type") == "run")
    assert (run.run_id, run.sweep_id) == ("t1", "s")


@contextlib.contextmanager
def agent(command, folder, values):
    """An agent that has started the trial t1 with these ``values``, as the process that it gives;
    at the end it is killed."""
    arguments = {name: {"value": value} for name, value in values.items()}
    trial = {"run_id": "t1", "program": str(ROOT / "reste"), "args": arguments}
    environment = {**os.environ, "WANDB_DIR": str(folder), "WANDB_SWEEP_ID": "s"}
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, json.dumps(command), json.dumps(trial)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout
        yield int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)


def wait_until(is_so):
    deadline = time.monotonic() + PATIENCE / 3
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_so()


def lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def said(folder):
    return (folder / "log.txt").read_text()
