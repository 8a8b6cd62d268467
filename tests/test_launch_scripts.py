"""The scripts that start clusters, run here with stand-ins for the cluster."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.run import get_args_parser

from pipeline.checkpoint import load
from tests.imagefolder_fixtures import cifar_tree

ROOT = Path(__file__).resolve().parent.parent
SBATCH = ROOT / "launch/slurm.sbatch"
EPOCHS = 6  # of 5 steps
# srun as far as the script needs it: its command once per node, and signals handed on to each.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
command = [each for each in sys.argv[1:] if not each.startswith("--cpu-bind")]
nodes = range(int(os.environ["SLURM_NNODES"]))
tasks = [
    subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(node)}) for node in nodes
]
def hand_on(number, frame):
    for task in tasks:
        task.send_signal(number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hand_on)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$CALLS"
if [ "$1" = show ]; then printf '%s\\n' localhost localhost; fi
"""
needs_cluster = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_available() or shutil.which("bash") is None,
    reason="needs Linux, bash and torch.distributed",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Starts the batch script on two "nodes" of one process each."""
    root = tmp_path_factory.mktemp("cluster")
    data = cifar_tree(root / "cifar")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (root / "bin").mkdir(exist_ok=True)
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    (root / "tiny.yaml").write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8, eval_batch_size: 6}, seed: 3,"
        f"train: {{epochs: {EPOCHS}, device: cpu, timeout: 60}}, log: {{every: 1, eta: 0}}}}"
    )
    environment = {
        **os.environ,
        "PATH": f"{root}/bin:{os.environ['PATH']}",
        "CALLS": str(root / "calls"),
        "PYTHON": sys.executable,
        "DATA": str(data),
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURMD_NODENAME": "localhost",
    }

    jobs = []

    def submit(name, job, restarts=0, *overrides):
        (root / "calls").unlink(missing_ok=True)
        overrides = [f"run.dir={root}", f"run.name={name}", *overrides]
        process = subprocess.Popen(
            ["bash", SBATCH, root / "tiny.yaml", *overrides],
            cwd=ROOT,
            env={
                **environment,
                "SLURM_JOB_ID": str(job),
                "SLURM_RESTART_COUNT": str(restarts),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        jobs.append(process)
        return process

    yield submit, root
    for process in jobs:
        with contextlib.suppress(ProcessLookupError):  # what a failed test left behind
            os.killpg(process.pid, signal.SIGKILL)


def calls(root):
    return (root / "calls").read_text().splitlines() if (root / "calls").exists() else []


def epochs(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["epoch"] for record in records if record["kind"] == "epoch"]


def stop(job, folder, number, times=1):
    """Signal the batch script in mid-training; wait for the checkpoint and the end."""
    wait_for_steps(folder, job, 3)
    for _ in range(times):
        os.kill(job.pid, number)
        time.sleep(0.1)
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 1, output  # torchrun's answer to a stop
    assert "interrupted; saved" in output
    last = max((folder / "checkpoints").glob("*.pt"), key=os.path.getmtime)
    assert 0 < load(last)["step"] < EPOCHS * 5


def wait_for_steps(folder, job, steps):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < steps:
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs_cluster
def test_slurm_saves_requeues_and_goes_on(cluster):
    submit, root = cluster
    job = submit("requeued", os.getpid())
    stop(job, root / "requeued", signal.SIGUSR1)
    assert calls(root)[-1] == f"requeue {os.getpid()}"
    job = submit("requeued", os.getpid(), 1)  # what Slurm does then
    output = job.communicate(timeout=200)[0]
    assert job.returncode == 0, output
    assert "going on after" in output
    assert calls(root) == ["show hostnames node[0-1]"]
    assert epochs(root / "requeued") == list(range(EPOCHS))


@needs_cluster
def test_slurm_saves_and_leaves_it_at_that_when_cancelled(cluster):
    submit, root = cluster
    job = submit("cancelled", os.getpid() + 1)
    # Slurm tells script and training alike: torchrun gets the signal twice.
    stop(job, root / "cancelled", signal.SIGTERM, times=2)
    assert calls(root) == ["show hostnames node[0-1]"]


@needs_cluster
def test_slurm_does_not_requeue_a_mistake(cluster):
    submit, root = cluster
    job = submit("mistake", os.getpid(), 0, "model.num_classes=3")
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 2 and "error: model.num_classes is 3" in output
    assert calls(root) == []


def test_shell_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run(["shellcheck", SBATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_kubernetes_starts_what_torchrun_and_we_understand():
    runtime, job = yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())
    trainer = job["spec"]["trainer"]
    options = get_args_parser().parse_args(trainer["args"])
    assert options.module and options.training_script == "launch.train"
    assert (ROOT / options.training_script_args[0]).is_file()
    env = {each["name"]: each.get("value") for each in trainer["env"]}
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    seconds = pod["spec"]["terminationGracePeriodSeconds"]
    assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < seconds
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
