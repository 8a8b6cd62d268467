"""The command study: what it lists and writes, and a study with real trainings that go wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import study as study_command
from pipeline.report.runs import read_run
from tests import ROOT
from tests.data.fixtures import cifar_tree


@pytest.fixture
def words(tmp_path):
    """The words of a study of two trainings, one of which diverges."""
    cifar_tree(tmp_path / "data")
    recipe = {
        "data": {"batch_size": 20, "eval_batch_size": 12},
        "train": {"epochs": 4},
        "indicators": {"enabled": True},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    (tmp_path / "mine.yaml").write_text(
        f"config: {tmp_path}/tiny.yaml\nseeds: [7]\nruns: [{{optim.lr: [0.1, 1e6]}}]"
    )
    return [f"{tmp_path}/mine.yaml", f"data.path={tmp_path}/data", f"run.dir={tmp_path}/runs"]


def test_a_dry_run_lists_and_leaves_nothing(words, tmp_path, capsys):
    study_command.main([*words, "--dry-run"])
    assert capsys.readouterr().out.splitlines() == [
        f"{'reste-seed7':21}  0 of 4 epochs",
        "reste-lr1000000-seed7  0 of 4 epochs",
        "2 of 2 trials are to be done",
    ]
    assert not (tmp_path / "runs").exists()


def test_a_report_alone_trains_nothing(words, tmp_path, capsys):
    study_command.main([*words, "--report"])
    assert "reste, lr 1000000" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "runs/mine").iterdir()) == [
        ".csv", ".md", ".png",
    ]  # fmt: skip


def advice(pattern, text):
    """What ``text`` says in the place of the group in ``pattern``."""
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def run(words):
    return subprocess.Popen(
        [ROOT / "reste", "study", *words],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for a process in /proc")
def test_a_killed_and_a_diverged_training(words, tmp_path):
    process = run(words)
    folder = tmp_path / "runs/mine/reste-seed7"
    while not (folder / "checkpoints/best.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert "warning: reste-seed7 ended with 137 (" in err
    command = advice(r"lr1000000-seed7 ended with 3 \(error: .*\); alone: (.*)", err)
    assert "ended with 137" in (tmp_path / "runs/mine/log.txt").read_text()
    assert "reste, lr 0.1        0 of 1" in out

    process = run(words)
    out, err = process.communicate()
    assert process.returncode == 3, err
    assert "reste-seed7  going on after epoch " in err
    assert "reste, lr 0.1        1 of 1" in out
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 3
    assert [epoch["epoch"] for epoch in read_run(folder).epochs] == [0, 1, 2, 3]
