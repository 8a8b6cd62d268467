"""The scripts that start clusters, run here with stand-ins for the cluster."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.run import get_args_parser

from pipeline.run.checkpoint import load
from tests import PATIENCE, ROOT
from tests.data.fixtures import cifar_tree

SBATCH = ROOT / "launch/clusters/slurm.sbatch"
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
PYTHON = """#!/bin/sh
echo python "$@" >> "$CALLS"
exit $END
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
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (root / "bin").mkdir(exist_ok=True)
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    (root / "tiny.yaml").write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8, eval_batch_size: 6}, seed: 3,"
        "train: {epochs: 100, device: cpu, timeout: 60}, log: {every: 1, eta: 0}}"
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

    def submit(**variables):
        (root / "calls").unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", SBATCH, root / "tiny.yaml", f"run.dir={root}", "run.name=run"],
            cwd=ROOT,
            env={**environment, "SLURM_JOB_ID": str(os.getpid()), **variables},
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


def stop(job, folder, number, times=1):
    """Signal the batch script in mid-training; its output, when it has saved and ended."""
    wait_for_steps(folder / "metrics.jsonl", job, 3)
    for _ in range(times):
        os.kill(job.pid, number)
        time.sleep(0.1)
    output = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 1, output  # torchrun's answer to a stop
    assert "interrupted; saved" in output
    return output


def wait_for_steps(path, job, more):
    steps, deadline = lines(path) + more, time.monotonic() + PATIENCE
    while lines(path) < steps:
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def step(folder):
    return load(max((folder / "checkpoints").glob("*.pt"), key=os.path.getmtime))["step"]


@pytest.mark.slow
@needs_cluster
def test_slurm_saves_requeues_and_goes_on(cluster):
    submit, root = cluster
    stop(submit(), root / "run", signal.SIGUSR1)
    assert calls(root)[-1] == f"requeue {os.getpid()}"
    saved = step(root / "run")
    # Then Slurm starts the script again. Cancelled, it saves and leaves it at that; Slurm tells
    # script and training alike, so torchrun gets the signal twice.
    output = stop(submit(SLURM_RESTART_COUNT="1"), root / "run", signal.SIGTERM, times=2)
    assert "going on after" in output
    assert calls(root) == ["show hostnames node[0-1]"]
    assert 0 < saved < step(root / "run")


@needs_cluster
def test_slurm_starts_what_torchrun_understands(cluster):
    submit, root = cluster
    job = submit(PYTHON=str(root / "bin/python"), END="0", SLURM_RESTART_COUNT="2")
    output = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 0, output
    check, hosts, *starts = calls(root)
    assert " --check=" in check and hosts == "show hostnames node[0-1]"
    assert len(starts) == 2
    for start in starts:
        module, *arguments = start.removeprefix("python -m ").split()
        options = get_args_parser().parse_args(arguments)
        assert module == "torch.distributed.run" and options.training_script == "launch.train"
        assert (options.nnodes, options.rdzv_id) == ("2", f"{os.getpid()}.2")


@needs_cluster
def test_slurm_does_not_start_or_requeue_a_mistake(cluster):
    submit, root = cluster
    job = submit(PYTHON=str(root / "bin/python"), END="2")
    job.communicate(timeout=PATIENCE)
    assert job.returncode == 2
    assert len(calls(root)) == 1


def test_shell_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run(["shellcheck", SBATCH, ROOT / "reste"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_kubernetes_starts_what_torchrun_and_we_understand():
    runtime, job = yaml.safe_load_all((ROOT / "launch/clusters/kubernetes.yaml").read_text())
    trainer = job["spec"]["trainer"]
    options = get_args_parser().parse_args(trainer["args"])
    assert options.module and options.training_script == "launch.train"
    assert (ROOT / options.training_script_args[0]).is_file()
    env = {each["name"]: each.get("value") for each in trainer["env"]}
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    seconds = pod["spec"]["terminationGracePeriodSeconds"]
    assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < seconds
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
