"""Where the figures of a run come from: the machine, the code, and the versions below it."""

import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import torch

from pipeline.run import processes
from pipeline.run.commands import ROOT
from pipeline.run.config import Config
from pipeline.run.versions import versions

FILE = "origin.json"  # in the run's folder


def origin_of(config: Config) -> dict[str, Any]:
    """What a run of ``config`` on this machine stands on, as plain values.

    ``gpu`` is the name of the main process's card, None on a processor, and ``gpus`` the number of
    cards of all processes together. ``commit`` and ``versions``: as those functions say.
    """
    on_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    return {
        "host": socket.gethostname(),
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "gpus": processes.size() if on_gpu else 0,
        "processes": processes.size(),
        "commit": commit(),
        "versions": versions(),
    }


def _processor() -> str:
    """The name of the processor; on Linux the one that it was sold under."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout, with "-dirty" if anything but results has changed since; empty
    where git does not know it."""
    try:
        name = _git("describe", "--always")
    except OSError:  # there is no git
        return ""
    if name.returncode:
        return ""
    changed = _git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)docs/results").returncode
    return name.stdout.strip() + ("-dirty" if changed else "")


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8")
