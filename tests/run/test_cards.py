"""What keeps a training off the GPUs of a machine. Whatever has no GPU here is played."""

import json
import subprocess
import sys

import pytest
import torch

from pipeline.run import cards, device
from pipeline.run.config import make_config
from pipeline.run.errors import UserError
from tests import PATIENCE, ROOT
from tests.standin import build

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version"
)


@pytest.fixture
def blind(monkeypatch):
    """torch finds no CUDA device, although it was built for CUDA 13.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    return monkeypatch


def raiser(message):
    def fail(*_):
        raise RuntimeError(message)

    return fail


def refusal(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def ask_for_cuda():
    config = make_config({"train": {"device": "cuda"}}, name="x")
    return refusal(lambda: device.get_device(config))


def test_a_driver_that_is_too_old(blind):
    blind.setattr(torch.cuda, "init", raiser(OLD_DRIVER))
    said = ask_for_cuda()
    assert "the NVIDIA driver is too old: it is for CUDA 11.4, and this torch for CUDA 13.0" in said
    assert said.endswith("install a driver for CUDA 13.0 or newer, or a torch for CUDA 11.4")


def test_a_driver_that_does_not_begin(blind):
    blind.setattr(torch.cuda, "init", raiser("Unexpected error from cudaGetDeviceCount()\nmore"))
    assert "CUDA cannot begin (Unexpected error from cudaGetDeviceCount());" in ask_for_cuda()


def test_no_driver(blind):
    blind.setattr(torch.cuda, "init", raiser("Found no NVIDIA driver on your system."))
    assert ask_for_cuda().endswith("torch finds no CUDA device; set train.device=cpu")


@pytest.mark.parametrize(
    ("shown", "words"), [("", "is empty, which hides every GPU"), ("7", "=7 names no GPU")]
)
def test_gpus_that_are_hidden(blind, shown, words):
    blind.setenv(cards.VISIBLE, shown)
    said = ask_for_cuda()
    assert f"{cards.VISIBLE}{' ' if not shown else ''}{words}" in said
    assert said.endswith(f"unset {cards.VISIBLE}")


def test_a_torch_without_cuda(blind):
    blind.setattr(torch.version, "cuda", None)
    assert "this torch was built without CUDA; set train.device=cpu" in ask_for_cuda()


def test_a_gpu_that_auto_leaves_idle_is_mentioned(blind, caplog, tmp_path):
    blind.setattr(torch.cuda, "init", raiser(OLD_DRIVER))
    blind.setattr(cards, "DRIVER", str(tmp_path / "none"))
    cards.note(torch.device("cpu"), "auto")
    assert not caplog.messages
    blind.setattr(cards, "DRIVER", str(tmp_path))
    cards.note(torch.device("cpu"), "cpu")
    assert not caplog.messages
    cards.note(torch.device("cpu"), "auto")
    (line,) = caplog.messages
    assert line.startswith("train.device=auto takes the CPU: the NVIDIA driver is too old")
    assert "train.device=cpu" not in line


@pytest.fixture
def card(monkeypatch):
    """One GPU of 80 GiB that is free, of compute capability 9.0."""
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    for name, value in {
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda _: (79 << 30, 80 << 30),
        "memory_reserved": lambda _: 0,
        "get_device_name": lambda _: "Tesla V100",
        "get_device_capability": lambda _: (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cards, "launcher_fault", lambda: None)
    return monkeypatch


def test_a_gpu_that_can_be_used(card, caplog):
    assert cards.current() == torch.device("cuda", 0)
    cards.note(torch.device("cuda", 0), "auto")
    assert not caplog.messages


def test_a_gpu_that_is_too_old(card):
    card.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert refusal(cards.current) == (
        "GPU 0 (Tesla V100) is of compute capability 7.0, and there are kernels from 7.5 on; "
        "set train.device=cpu, or take a newer GPU"
    )


def test_a_gpu_that_others_fill(card, caplog):
    card.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 80 << 30))
    cards.note(torch.device("cuda", 0), "auto")
    said = "GPU 0: other processes hold 60.0 of its 80.0 GiB; nvidia-smi lists them"
    assert caplog.messages == [said]
    card.setattr(torch.cuda, "mem_get_info", raiser("CUDA error: out of memory\nmore"))
    assert refusal(cards.current).startswith("GPU 0 has no memory left: other processes, which")


def test_a_gpu_that_does_not_answer(card):
    card.setattr(torch.cuda, "current_device", raiser("CUDA error: unknown error\nmore"))
    assert refusal(cards.current).startswith("GPU 0 cannot be used (CUDA error: unknown error);")


def test_more_names_than_gpus(card, caplog):
    card.setenv(cards.VISIBLE, "0,-1")  # which ends the list
    cards.note(torch.device("cuda", 0), "auto")
    assert not caplog.messages
    card.setenv(cards.VISIBLE, "0,7")
    cards.note(torch.device("cuda", 0), "auto")
    assert caplog.messages == [f"{cards.VISIBLE}=0,7 names a GPU that is not there; 1 are seen"]


@pytest.mark.parametrize(("local", "processes", "count"), [(0, 2, 2), (3, 1, 4), (3, 0, 4)])
def test_more_processes_than_gpus(card, local, processes, count):
    """LOCAL_RANK may be larger than LOCAL_WORLD_SIZE says, where torchrun did not write both."""
    card.setenv(cards.VISIBLE, "0")
    said = refusal(lambda: cards.take(local, processes))
    assert said.startswith(f"{count} processes on this machine have 1 GPUs ({cards.VISIBLE}=0);")


def test_a_check_counts_the_gpus(card):
    """Before torchrun starts anything, and of this machine alone."""
    card.setattr(cards, "why_none", lambda: "")
    config = make_config({"train": {"device": "cuda"}}, name="x")
    card.setenv("LOCAL_WORLD_SIZE", "2")
    said = refusal(lambda: device.get_device(config, only_check=True))
    assert said.startswith("2 processes on this machine have 1 GPUs; start as many")
    device.get_device(config)  # a training alone cares for no number that was left behind
    card.setenv("LOCAL_WORLD_SIZE", "1")
    device.get_device(config, only_check=True)


def test_a_gpu_that_cannot_be_taken_is_said_by_its_own_process(card):
    card.setattr(torch.cuda, "set_device", raiser("CUDA error: out of memory"))
    with pytest.raises(UserError, match="GPU 0 has no memory left") as caught:
        cards.take(0, 1)
    assert caught.value.is_alone


@pytest.mark.parametrize(
    ("fault", "compiler", "words"),
    [
        (RuntimeError("Failed to find C compiler."), None, "apt-get install gcc"),
        (FileNotFoundError(2, "no such file"), "icx", "CC=icx cannot be run; .*: unset CC"),
        (RuntimeError("not that either\nmore"), None, r"kernels \(not that either\);"),
    ],
)
def test_a_launcher_that_cannot_be_built(card, fault, compiler, words):
    card.setattr(cards, "launcher_fault", lambda: fault)
    card.delenv("CC", raising=False)
    if compiler:
        card.setenv("CC", compiler)
    with pytest.raises(UserError, match=words):
        cards.current()


def test_pythons_headers_are_asked_for(card, tmp_path):
    card.setattr(cards, "launcher_fault", lambda: RuntimeError("returned non-zero exit status 1"))
    card.setattr(cards.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match=f"no {tmp_path}/Python.h; .*apt-get install python3-dev"):
        cards.current()


UNDER_THE_STANDIN = """
import json
from tests.standin import device
from pipeline.run import cards
from pipeline.run.errors import UserError
try:
    print(json.dumps(str(cards.current())))
except UserError as error:
    print(json.dumps(str(error)))
import os; os._exit(0)
"""


slow = pytest.mark.slow  # each case starts a process


@pytest.mark.skipif(bool(build.obstacle()), reason=str(build.obstacle()))
@pytest.mark.parametrize(
    ("path", "compiler", "words"),
    [
        (None, None, "cuda:0"),
        pytest.param(*("", None, "there is no C compiler, with which Triton builds"), marks=slow),
        pytest.param(*(None, "no-such-compiler", "CC=no-such-compiler cannot be run"), marks=slow),
    ],
)
def test_tritons_own_faults(path, compiler, words, tmp_path):
    """Its real launcher is built, where it has not been before."""
    env = build.environment() | {"TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("CC", None)
    env |= {} if path is None else {"PATH": path}
    env |= {"CC": compiler} if compiler else {}
    done = subprocess.run(
        [sys.executable, "-c", UNDER_THE_STANDIN],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]).startswith(words)
