"""Runs that are sent to wandb from their own files."""

import fcntl
import json
import logging
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from launch import sync as sync_command
from pipeline.report.sync import send_all, with_steps
from pipeline.run.commands import command_line
from pipeline.run.config import make_config, to_dict
from pipeline.run.recorder import Recorder
from tests import ROOT
from tests.run.fake_wandb import history
from tests.run.wandb_server import KEY, Server

EPOCHS = 2
RECORDS = [
    {"kind": "step", "step": 2, "epoch": 0, "lr": 0.1, "loss": 2.0},
    {"kind": "step", "step": 3, "epoch": 0, "lr": 0.1, "loss": 1.5},
    {"kind": "epoch", "epoch": 0, "val_top1": 50.0, "indicators": {"total": {"error": 2.5}}},
    {"kind": "step", "step": 5, "epoch": 1, "lr": 0.1, "loss": 1.0},
    {"kind": "step", "step": 6, "epoch": 1, "lr": 0.1, "loss": float("nan")},
    {"kind": "histograms", "epoch": 1, "weights": {"conv": {"limit": 0.5, "counts": [1, 3]}}},
    {"kind": "epoch", "epoch": 1, "val_top1": 60.0},
]
STEPS = [2, 3, 3, 5, 6, 6, 6]


def config_of(folder, *words):
    given = [f"run.dir={folder.parent}", f"train.epochs={EPOCHS}", "data.batch_size=10", *words]
    return make_config({}, given, name=folder.name)


@pytest.fixture
def put(tmp_path):
    """A function that leaves a run's files, as a training does, and returns its folder."""

    def do(name="mine", records=RECORDS, *words):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        values = to_dict(config_of(folder, *words))
        (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        (folder / "origin.json").write_text('{"host": "theirs", "commit": "abc1234"}')
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(lines)
        return folder

    return do


def warned(caplog):
    return [each.message for each in caplog.records if each.levelno == logging.WARNING]


def test_it_sends_what_a_training_would_have(wandb, put, tmp_path):
    words = ["log.wandb=online", "log.tags=a,b", "log.group=g", "log.notes=n", "log.project=p"]
    live = tmp_path / "live" / "mine"
    live.mkdir(parents=True)
    recorder = Recorder()
    recorder.open(config_of(live, *words))
    for record, step in zip(RECORDS, STEPS, strict=True):
        recorder.write(record, step)
    recorder.close()
    recorded, wandb.calls = wandb.calls, []
    assert send_all([put("mine", RECORDS, *words)], "online", best=False) == 0
    (began, *rest, last), (expected, *others) = wandb.calls, recorded
    assert repr(rest) == repr(others)  # axes, summaries, rows (one is NaN), and the end
    assert last == ("teardown", {})  # all is written by then
    kept = ("project", "name", "group", "tags", "notes", "job_type", "mode")
    assert [began[1][key] for key in kept] == [expected[1][key] for key in kept]
    assert "resume" not in began[1]  # it takes the place of what is there
    assert {**began[1]["config"], "run": 0} == {
        **to_dict(config_of(live, *words)), "run": 0, "host": "theirs", "commit": "abc1234",
    }  # fmt: skip


def test_an_epoch_comes_after_its_last_step():
    assert [step for _, step in with_steps(RECORDS)] == STEPS


def test_a_run_keeps_its_identity_and_knows_its_place(wandb, put, tmp_path):
    first = put("Läufe ohne Ende")
    assert send_all([first, first], "online", best=False) == 0
    moved = first.rename(tmp_path / "moved")
    assert send_all([moved], "online", best=False) == 0
    begun = wandb.named("init")
    assert len({each["id"] for each in begun}) == 1
    assert [each["name"] for each in begun] == [first.name, first.name, "moved"]
    assert begun[-1]["config"]["run"]["dir"] == str(tmp_path)


@pytest.mark.parametrize(("records", "code"), [(RECORDS, 0), (RECORDS[:-1], 1)])
def test_only_a_whole_run_is_finished(wandb, put, records, code):
    send_all([put("mine", records)], "online", best=False)
    assert wandb.named("finish") == [{"exit_code": code}]


def test_the_best_checkpoint_goes_with_it_when_asked(wandb, put):
    folder = put()
    (folder / "checkpoints").mkdir()
    send_all([folder], "online", best=True)
    assert wandb.named("log_artifact") == []  # there is none
    (folder / "checkpoints/best.pt").write_bytes(b"weights")
    send_all([folder], "online", best=False)
    assert wandb.named("log_artifact") == []
    send_all([folder], "online", best=True)
    files = [str(folder.resolve() / "checkpoints/best.pt")]
    assert wandb.named("log_artifact") == [{"files": files}]


def test_a_line_each_for_what_is_wrong_and_the_others_are_sent(wandb, put, tmp_path, capsys):
    good, empty, torn, broken = put("good"), put("empty", []), put("torn"), put("broken")
    with open(torn / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    (broken / "metrics.jsonl").write_text("no record\n")
    (gone := put("gone") / "metrics.jsonl").unlink()
    folders = [tmp_path / "nothing", empty, broken, gone.parent, good, torn]
    assert send_all(folders, "online", best=False) == 4
    assert [each["name"] for each in wandb.named("init")] == ["good", "torn"]
    assert len(wandb.named("log")) == 2 * len(RECORDS)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in said] == ["error:"] * 4
    reasons = ("is no run", "no records yet", "line 1", "cannot read")
    for line, what in zip(said, reasons, strict=True):
        assert what in line


def test_a_run_that_still_trains_is_sent_as_far_as_it_is(wandb, put, caplog):
    folder = put("mine", RECORDS[:3])
    code = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    code += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, folder / "metrics.jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as training:  # fmt: skip
        training.stdout.readline()
        assert send_all([folder], "online", best=False) == 0
        training.communicate()
    assert warned(caplog) == [f"{folder} is still training; send it again when it has ended"]
    assert len(wandb.named("log")) == 3
    caplog.clear()
    send_all([folder], "online", best=False)
    assert warned(caplog) == []
    with open(folder / "metrics.jsonl", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the look has left no lock


def test_rows_that_wandb_keeps_beyond_the_runs_own_are_told(wandb, put, caplog):
    folder, wandb.last_step = put(), len(RECORDS)
    send_all([folder], "online", best=False)
    assert re.search(f"done twice; .* remove {re.escape(str(folder))}/wandb_id ", *warned(caplog))
    caplog.clear()
    wandb.last_step = len(RECORDS) - 1
    send_all([folder], "online", best=False)
    assert warned(caplog) == []


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_wandb_does_not_take_has_a_way_out(wandb, put, fails, capsys):
    wandb.fails = (fails,)
    folder = put("a run")
    assert send_all([folder], "online", best=False) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}: wandb does not take it (no {fails} today); ")
    wandb.fails = ()
    words = shlex.split(said.partition("write it for later: ")[2])
    assert shlex.join(words[: -len(["sync", "--offline", "RUN"])]) == command_line()
    sync_command.main(words[words.index("sync") + 1 :])
    assert wandb.named("init")[-1]["mode"] == "offline"


def test_the_command_fails_if_any_run_did(wandb, put, tmp_path):
    with pytest.raises(SystemExit) as end:
        sync_command.main([str(tmp_path / "nothing"), str(put())])
    assert end.value.code == 2 and len(wandb.named("finish")) == 1


def test_without_wandb_the_package_is_named(put, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        send_all([put()], "online", best=False)


@pytest.mark.slow
def test_an_offline_folder_holds_the_run_in_full(put, caplog, monkeypatch):
    """A real file of wandb's."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    caplog.set_level(logging.INFO, "reste")
    folder = put("ein Lauf mit Ä")
    send_all([folder], "offline", best=False)
    *_, name = shlex.split(caplog.messages[-1])
    (file,) = (folder / "wandb" / name).glob("*.wandb")
    rows = history(file)
    assert [each["step"] for each in rows] == STEPS
    assert [each.get("epoch/val_top1") for each in rows] == [None, None, 50, None, None, None, 60]


@pytest.mark.slow
def test_a_server_has_each_record_once_however_often_it_is_sent(put):
    """The real client, and a stand-in for its server."""
    pytest.importorskip("wandb")
    folder = put("ein Lauf mit Ä", RECORDS[:3])
    with Server() as server:
        variables = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}

        def sync(**others):
            command = [sys.executable, "-m", "launch.sync", str(folder)]
            done = subprocess.run(
                command, cwd=ROOT, env={**variables, **others}, capture_output=True, text=True
            )
            return done.returncode, done.stderr

        assert sync()[0] == 0 and [row["step"] for row in only(server.rows)] == STEPS[:3]
        assert only(server.codes) == 1
        put(folder.name)  # it has grown
        for _ in range(2):
            code, said = sync()
            assert code == 0 and "done twice" not in said, said
            assert [row["step"] for row in only(server.rows)] == STEPS
            assert [row["_step"] for row in only(server.rows)] == [*range(len(STEPS))]
        assert only(server.codes) == 0
        assert only(server.configs)["commit"] == {"value": "abc1234"}
        code, said = sync(WANDB_API_KEY="short")
        assert code == 2 and f"error: {folder}: wandb does not take it (WANDB_API_KEY" in said


def only(values):
    (value,) = values.values()
    return value
