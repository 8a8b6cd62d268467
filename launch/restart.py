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

from pipeline import distributed
from pipeline.config import Config
from pipeline.errors import Diverged, Interrupted

FILE = "job.json"  # in the run's folder


def begin(config: Config) -> None:
    """Note in the run's folder whose it is now. The main process calls it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _path(config).write_text(json.dumps({"job": _job()}))


def note(config: Config, end: Interrupted | Diverged) -> None:
    """Leave word of ``end`` for the processes that torchrun will start in the place of these."""
    together = not isinstance(end, Interrupted) or end.together
    if "TORCHELASTIC_RUN_ID" in os.environ and (distributed.is_main() or not together):
        signal = end.signal if isinstance(end, Interrupted) else 0
        word = {"job": _job(), "signal": signal, "message": str(end)}
        with contextlib.suppress(OSError):  # a full disk is not what the run ended with
            config.run_folder.mkdir(parents=True, exist_ok=True)
            _path(config).write_text(json.dumps(word))
    if together:
        distributed.barrier()  # torchrun ends the others as soon as one has ended


def is_restart(config: Config) -> bool:
    """Whether torchrun started these processes in the place of others that had begun this run.

    Raises ``Interrupted`` or ``Diverged`` as they did, if they ended for good.
    """
    restarts = distributed.largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if not restarts:
        if distributed.is_main() and _read(config):
            _path(config).unlink()  # of a job by the same name, in a container that was made anew
        return False
    word = json.loads(distributed.from_main(lambda: json.dumps(_read(config)).encode()))
    if "message" not in word:
        return bool(word)
    if word["signal"]:
        raise Interrupted(word["signal"], "this job was asked to stop; start another to go on")
    raise Diverged(word["message"])


def _read(config: Config) -> dict[str, Any]:
    """What these processes' predecessors left, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        word = json.loads(_path(config).read_text())
        if word["job"] == _job():
            return dict(word)
    return {}


def _path(config: Config) -> Path:
    return config.run_folder / FILE


def _job() -> str:
    """torchrun itself, which outlives its processes."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()}"
