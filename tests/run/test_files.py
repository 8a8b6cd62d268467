"""Files that the user names: what is no file is refused in one line and at once."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from launch import evaluate as evaluate_command
from launch import train as train_command
from launch.command import command
from pipeline.data import exclude
from pipeline.run import checkpoint, plain_yaml
from pipeline.run.errors import UserError
from pipeline.run.files import open_file
from tests import ROOT
from tests.data.fixtures import cifar_tree
from tests.run.test_plain_yaml import BOMB

NO_FILE = "This is a pipe or a device, no file"
READERS = {
    "config": plain_yaml.load,
    "data.exclude": lambda path: exclude.read(str(path), "train", path.parent),
    "checkpoint": checkpoint.load,
}


@pytest.fixture(params=["pipe", "socket", "folder", "zero", "tty", "null", "gone"])
def no_file(request, tmp_path, monkeypatch):
    if request.param in ("zero", "tty", "null"):
        return type(tmp_path)("/dev", request.param)
    path = tmp_path / request.param
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        socket.socket(socket.AF_UNIX).bind("socket")
    return path


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(no_file, reader):
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        READERS[reader](no_file)
    assert time.process_time() - begin < 1
    message = str(caught.value)
    assert str(no_file) in message and "; " in message and message.isprintable()
    if no_file.name in ("pipe", "zero", "null"):
        assert f"{NO_FILE}; " in message


def test_what_is_no_file_is_closed_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(5):
        with pytest.raises(OSError, match="no file"):
            open_file(tmp_path / "pipe")
    assert len(before) in (0, len(os.listdir("/proc/self/fd")))


def sparse(path, begin=b""):
    """Ten gigabytes of zeros behind ``begin``, which take no room on the disk."""
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(10 * 2**30)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF\0\1\2\xff", "line 1: .* is no path train/<class>/"),
        (
            b"# ok\n" + b"train/a/" + b"x" * 10**6,
            "line 2: longer than 65536 characters, no path",
        ),
        (None, "line 2: longer than 65536 characters, no path; set data.exclude=null"),
    ],
    ids=["binary", "one endless line", "zeros"],
)
def test_a_list_that_is_none_is_refused_at_once(tmp_path, content, words):
    path = tmp_path / "list"
    if content is None:
        sparse(path, b"# ok\n")
    else:
        path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(UserError, match=words):
        exclude.read(str(path), "train", path.parent)
    assert time.process_time() - begin < 1


def test_a_checkpoint_that_is_none_is_refused_at_once(tmp_path):
    (tmp_path / "deep").write_bytes(b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".")
    for path in (sparse(tmp_path / "zeros"), tmp_path / "deep"):
        begin = time.process_time()
        with pytest.raises(UserError, match="is no checkpoint, or a damaged one; take another"):
            checkpoint.load(path)
        assert time.process_time() - begin < 1


@pytest.mark.parametrize("key", ["data.exclude", "model.weights", "run.resume"])
def test_a_training_with_no_file_ends_at_once(tmp_path, key):
    config = tmp_path / "tiny.yaml"
    config.write_text("{model: {num_classes: 2}, data: {batch_size: 8}, train: {device: cpu}}")
    os.mkfifo(tmp_path / "pipe")
    data = cifar_tree(tmp_path / "data")
    for path in (tmp_path / "pipe", "/dev/zero"):
        arguments = [str(config), f"data.path={data}", f"run.dir={tmp_path}/runs", f"{key}={path}"]
        with pytest.raises(UserError, match=f"{path}.*: {NO_FILE}; "):
            train_command.main(arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", [3, None, [], {"data": 3}, {"optim": {"lr": [[]]}}, {1: {2: 3}}])
def test_a_config_in_a_checkpoint_that_is_none_is_refused(tmp_path, config):
    path = tmp_path / "odd.pt"
    torch.save({"state_dict": {}, "config": config}, path)
    with pytest.raises(UserError) as caught:
        evaluate_command.main([str(path)])
    assert len(str(caught.value).splitlines()) == 1
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=NO_FILE):
        evaluate_command.main([str(tmp_path / "pipe")])


ODD_CONFIGS = {
    "deep": (b"[" * 10_000, "line 1: nested deeper than 20 levels; write it flat"),
    "null": (b"~: 1", "line 1: a key is empty or null; write key: value"),
    "binary": (b"\x7fELF\xff", "is no text in UTF-8; take one of"),
    "bomb": (BOMB.encode(), "line 4: more than 2000 values, aliases included; leave some out"),
    "pipe": (None, NO_FILE),
}


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, name):
    content, words = ODD_CONFIGS[name]
    path = tmp_path / name
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["train", str(path)])
    begin = time.process_time()
    with pytest.raises(SystemExit) as end:
        command(train_command.main)
    assert time.process_time() - begin < 1 and end.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and words in err


def test_so_does_a_process():
    run = subprocess.run(
        [sys.executable, "-m", "launch.train", "/dev/zero"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    line = f"error: config /dev/zero: {NO_FILE}; take one of configs/*.yaml\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", line)
