"""How long a training takes to start, and the memory of its process.

Both are measured on real runs, which are stopped after a few steps.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from launch.bench.results import Row, row
from pipeline.run.commands import ROOT
from pipeline.run.config import Config
from pipeline.run.errors import UserError

START_STEPS = 30  # steps of a real run before it is stopped


def starts(
    path: str, overrides: Sequence[str], config: Config, data: Path | None = None, times: int = 3
) -> list[Row]:
    """Seconds from the command line to the first step of a real run, with other ``data`` than the
    config's where they are given, and the peak of its process's memory in its first steps."""
    if data is not None:
        overrides = [*overrides, f"data.path={data}"]
    results = torch.tensor([_start(path, overrides) for _ in range(times)], dtype=torch.float64)
    case = f"{config.run.name}/{config.data.batch_size}/{config.train.precision}"
    return [
        row(case, "ours", "end_to_end", "time_to_first_step", "s", results[:, 0]),
        row(case, "ours", "end_to_end", "memory", "MiB", results[:, 1]),
    ]


def _start(path: str, overrides: Sequence[str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        ours = [f"run.dir={folder}", "run.name=start", "log.every=1"]
        began = time.perf_counter()
        run = subprocess.Popen(
            [ROOT / "reste", "train", path, *overrides, *ours],
            env={**os.environ, "PYTHON": sys.executable},
            stderr=subprocess.DEVNULL,
        )
        metrics = Path(folder) / "start" / "metrics.jsonl"
        first, stopped, pid = 0.0, False, 0
        while not pid:
            pid, status, usage = os.wait4(run.pid, os.WNOHANG)
            done = _steps_done(metrics)
            if done and not first:
                first = time.perf_counter() - began
            if done >= START_STEPS and not stopped:
                os.kill(run.pid, signal.SIGINT)
                stopped = True
            time.sleep(0.05)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode != 128 + signal.SIGINT:
        raise UserError(f"the run with {path} ended with {run.returncode}; start it by itself")
    return first, usage.ru_maxrss / 1024


def _steps_done(metrics: Path) -> int:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return sum(json.loads(line)["kind"] == "step" for line in lines)
