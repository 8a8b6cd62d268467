"""What a job of torchrun leaves for its own restarts.

torchrun starts its processes again however they ended: one that was asked to stop must not go on,
and one that diverged would only do so again.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from pipeline.run import environment, processes
from pipeline.run.config import Config
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.files import open_file, write_atomically

FILE = "job.json"  # in the run's folder


class _Job:
    """The torchrun that started the main process; it outlives its processes."""

    name = ""


def begin(config: Config) -> None:
    """Note in the run's folder which job it belongs to now. Only the main process calls it."""
    if _Job.name:
        _write(config, {"job": _Job.name})


def note(config: Config, end: Interrupted | Diverged) -> None:
    """Leave word of ``end`` for the processes that torchrun will start in the place of these."""
    together = not isinstance(end, Interrupted) or end.together
    if _Job.name and (processes.is_main() or not together):
        signal = end.signal if isinstance(end, Interrupted) else 0
        with contextlib.suppress(OSError, UserError):  # a full disk is not what the run ended with
            config.run_folder.mkdir(parents=True, exist_ok=True)
            _write(config, {"job": _Job.name, "signal": signal, "message": str(end)})
    if together:
        processes.barrier()  # torchrun ends the others as soon as one has ended


def is_restart(config: Config) -> bool:
    """Whether torchrun started these processes in the place of others that had begun this run.

    Raises ``Interrupted`` or ``Diverged`` as they did, if they ended for good.
    """
    _Job.name = processes.from_main(lambda: _own().encode()).decode()
    restarts = processes.largest(environment.restarts() if _own() else 0)
    word = json.loads(processes.from_main(lambda: json.dumps(_read(config)).encode()))
    if not restarts:
        if processes.is_main() and word:
            _path(config).unlink()  # of a job by the same name, in a container that was made anew
        return False
    if "message" not in word:
        return bool(word)
    if word["signal"]:
        raise Interrupted(word["signal"], "this job was asked to stop; start another to go on")
    raise Diverged(word["message"])


def _read(config: Config) -> dict[str, Any]:
    """What the predecessors of these processes left, or nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open_file(_path(config)) as file:
            word = json.load(file)
        if _Job.name and word["job"] == _Job.name:
            return dict(word)
    return {}


def _write(config: Config, word: dict[str, Any]) -> None:
    write_atomically(_path(config), json.dumps(word).encode())


def _path(config: Config) -> Path:
    return config.run_folder / FILE


def _own() -> str:
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{job} {socket.gethostname()} {os.getppid()}" if job else ""
