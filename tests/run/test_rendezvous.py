"""What the environment says of other processes, where torchrun did not write it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run import processes, rendezvous
from pipeline.run.errors import UserError
from tests import ROOT

GOOD = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here.invalid",
        "MASTER_PORT": "29500"}  # fmt: skip


def start(monkeypatch, variables, device="cpu"):
    for name in (*GOOD, "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "end_with_parent", lambda _: None)
    rendezvous.start(device, 1, Path("nowhere"))


@pytest.mark.parametrize("size", [None, "", "1"])
def test_one_process_needs_nothing_else(monkeypatch, size):
    start(monkeypatch, {} if size is None else {"WORLD_SIZE": size})
    assert processes.size() == 1


@pytest.mark.parametrize(
    ("left", "device", "missing"),
    [
        ([], "cpu", "RANK, MASTER_ADDR, MASTER_PORT are not set; "),
        (["RANK", "LOCAL_RANK"], "cpu", "MASTER_ADDR, MASTER_PORT are not set; "),
        (["RANK", "MASTER_ADDR", "MASTER_PORT"], "cuda", "LOCAL_RANK is not set; "),
    ],
)
def test_what_a_scheduler_left_alone_is_named(monkeypatch, left, device, missing):
    with pytest.raises(UserError) as error:
        start(monkeypatch, {k: GOOD[k] for k in ("WORLD_SIZE", *left)}, device)
    assert str(error.value) == (
        f"WORLD_SIZE=4 says that this is one of 4 processes, but {missing}start them with "
        "torchrun, or train in one process after: unset WORLD_SIZE"
    )


@pytest.mark.parametrize(
    "name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"]
)
@pytest.mark.parametrize("value", ["two", "-1", "1.5", " 2", "²", "99999999999", "4x", "a\nb"])
def test_what_is_no_number_is_named(monkeypatch, name, value):
    device = "cuda" if name == "LOCAL_RANK" else "cpu"
    with pytest.raises(UserError, match=f"{name}=.* is no whole number between .*; start the") as e:
        start(monkeypatch, {**GOOD, name: value}, device)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", ["0", "4"])
def test_numbers_have_limits(monkeypatch, value):
    name = "WORLD_SIZE" if value == "0" else "RANK"
    with pytest.raises(UserError, match=f"{name}={value} is no whole number between"):
        start(monkeypatch, {**GOOD, name: value})


def test_a_place_that_cannot_be_reached_is_named(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such host\nand a long trace")

    monkeypatch.setattr(rendezvous, "TCPStore", fail)
    said = "MASTER_ADDR=here.invalid MASTER_PORT=29500 cannot be used: no such host; name a machine"
    with pytest.raises(UserError, match=said):
        start(monkeypatch, GOOD)
    with pytest.raises(UserError, match="MASTER_ADDR=127.0.0.1 MASTER_PORT=1 cannot be used"):
        monkeypatch.setattr(rendezvous.socket, "create_server", fail)
        start(monkeypatch, {**GOOD, "RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_PORT": "1"})


@pytest.mark.parametrize("error", [None, RuntimeError("connection closed")])
def test_leaving_lost_processes_takes_no_time(monkeypatch, error):
    def destroy():
        if error:
            raise error
        time.sleep(60)

    monkeypatch.setattr(rendezvous.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(rendezvous.dist, "destroy_process_group", destroy)
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    began = time.monotonic()
    rendezvous.stop()
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_the_remedy_works_as_printed(lab):
    """A real process with a WORLD_SIZE that a scheduler left, and then without it."""
    command = f"{sys.executable} -m launch.train {lab.config} data.path={lab.data} --check"
    env = {**os.environ, "WORLD_SIZE": "4", "PYTHONPATH": str(ROOT)}

    def run(line):
        return subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True)

    refused = run(command)
    assert refused.returncode == 2
    assert [line for line in refused.stderr.splitlines() if "error" in line.lower()] == [
        refused.stderr.splitlines()[-1]
    ]
    remedy = refused.stderr.rpartition("after: ")[2].strip()
    done = run(f"{remedy}; {command}")
    assert done.returncode == 0, done.stderr
