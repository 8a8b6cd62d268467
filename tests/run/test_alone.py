"""Locks: two commands never work in one folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import prepare, study
from pipeline.run import alone
from pipeline.run.alone import alone_in
from pipeline.run.errors import UserError
from tests import PATIENCE, ROOT
from tests.data.fixtures import cifar_tree, plain_folder

HOLD = """
import sys
from pathlib import Path
from pipeline.run.alone import alone_in, lock
path = Path(sys.argv[1])
if path.suffix:
    file = open(path, "ab")
    lock(file.fileno(), "")
    print(flush=True)
    sys.stdin.read()
else:
    with alone_in(path, ""):
        print(flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def hold():
    """A function that lets another process lock a path; it returns what ends that."""
    held = []

    def start(path):
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        held.append(other)
        other.stdout.readline()
        return lambda: other.communicate(timeout=PATIENCE)

    yield start
    for other in held:
        other.kill()
        other.communicate()


def test_only_one_is_there(tmp_path, hold):
    folder = tmp_path / "a/b"
    end = hold(folder)
    refused = pytest.raises(UserError, match=r"^another process is at work in .*/a/b; go away$")
    with refused, alone_in(folder, "go away"):
        pytest.fail("it was let in")
    end()
    with alone_in(folder, ""):
        pass


def test_folders_that_stay_empty_are_taken_away(tmp_path):
    with alone_in(tmp_path / "a/b", ""):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path / "a/b", ""):
        (tmp_path / "a/c").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c"]
    with alone_in(tmp_path / "a", ""):
        (tmp_path / "a/c").unlink()
    assert (tmp_path / "a").is_dir()  # it was there before


@pytest.mark.parametrize("error", [OSError(9, "Bad file descriptor"), None])
def test_without_locks_everybody_is_let_in(tmp_path, monkeypatch, error):
    def flock(*_):
        raise error

    if error:
        monkeypatch.setattr(alone.fcntl, "flock", flock)
    else:
        monkeypatch.setattr(alone, "fcntl", None)
    with alone_in(tmp_path, ""), alone_in(tmp_path, ""):
        pass


def test_what_another_process_works_at_is_left_alone(tmp_path, monkeypatch, hold):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        plain_folder(tmp_path / "data", split, 6)
    for words in (["resize"], ["shard"], ["split"]):
        source = "data/val" if words == ["split"] else "data"
        end = hold(tmp_path / words[0])
        with pytest.raises(UserError, match="at work in .*; wait until it has ended, or name anot"):
            prepare.main([*words, source, words[0]])
        prepare.main([*words, source, f"other-{words[0]}"])
        assert not any(Path(words[0]).iterdir())
        end()
        prepare.main([*words, source, words[0]])
    Path("bad-images.txt.state").touch()
    hold(tmp_path / "bad-images.txt.state")
    with pytest.raises(UserError, match="another process writes bad-images.txt.state; name anothe"):
        prepare.main(["verify", "data"])
    prepare.main(["verify", "data", "--report", "other.txt"])


def test_two_studies(tmp_path, hold):
    cifar_tree(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(
        "{data: {batch_size: 20, eval_batch_size: 12}, train: {epochs: 1, compile: false}}"
    )
    (tmp_path / "mine.yaml").write_text(f"config: {tmp_path}/tiny.yaml\nruns: [{{optim.lr: 0.1}}]")
    words = [f"{tmp_path}/mine.yaml", f"data.path={tmp_path}/data", f"run.dir={tmp_path}/runs"]
    end = hold(tmp_path / "runs/mine")
    with pytest.raises(UserError) as error:
        study.main(words)
    said = str(error.value)
    assert said.endswith("/runs/mine; stop it, or set run.name=mine-2 to begin another study")
    assert not (tmp_path / "runs/mine/log.txt").exists()
    end()
