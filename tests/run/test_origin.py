"""What a run notes of machine and code."""

import json
import socket
import subprocess

from pipeline.run import origin
from pipeline.run.config import make_config
from pipeline.run.origin import origin_of


def test_a_run_on_a_processor_names_it():
    found = origin_of(make_config({}, ["train.device=cpu"], name="x"))
    assert json.loads(json.dumps(found)) == found
    assert (found["host"], found["gpu"], found["gpus"]) == (socket.gethostname(), None, 0)
    assert found["cpu"] and found["processes"] == 1
    assert found["versions"].startswith("Python ")


def test_a_run_on_gpus_counts_those_of_all_processes(monkeypatch):
    monkeypatch.setattr(origin.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(origin.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(origin.processes, "size", lambda: 16)
    found = origin_of(make_config({}, name="x"))
    assert (found["gpu"], found["gpus"], found["processes"]) == ("NVIDIA H100", 16, 16)
    assert origin_of(make_config({}, ["train.device=cpu"], name="x"))["gpus"] == 0


def test_a_commit_is_dirty_if_more_than_results_has_changed(tmp_path, monkeypatch):
    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert origin.commit() == ""
    (tmp_path / "docs/results").mkdir(parents=True)
    for path in ("code.py", "docs/results/train.png"):
        (tmp_path / path).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = origin.commit()
    assert len(clean) >= 7 and not clean.endswith("-dirty")
    (tmp_path / "docs/results/train.png").write_text("2")  # what a benchmark draws
    assert origin.commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert origin.commit() == f"{clean}-dirty"
