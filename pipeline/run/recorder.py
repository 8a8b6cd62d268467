"""What a run records: metrics.jsonl always, and wandb when asked."""

import json
import os
import stat
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
from pipeline.run.console import logger
from pipeline.run.errors import UserError


def _lock(file: TextIO) -> None:
    """Keep other processes from writing the same run, until this one ends."""
    if fcntl is None or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"another process is training this run, {Path(file.name).parent}; stop it, or set "
            "run.name to start another"
        ) from None
    except OSError:  # a file system without locks
        pass


class JsonLines:
    """metrics.jsonl: one JSON object a line, flushed at once; one process writes it.

    ``size`` of a checkpoint says how long the file was then; resuming cuts off what came after.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.file: TextIO = open(path, "a")  # noqa: SIM115
        _lock(self.file)
        if path.stat().st_size < size:
            logger.warning("%s is shorter than at the checkpoint: lines are missing", path)
        elif path.stat().st_size > size:
            os.truncate(path, size)

    def write(self, record: dict[str, Any]) -> None:
        """Append ``record``."""
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; make room or set run.dir"
            ) from None

    def size(self) -> int:
        """Its length in bytes."""
        return self.path.stat().st_size


class Wandb:
    """Weights & Biases, if asked for; a failure is one warning and never the run's end."""

    def __init__(self, mode: str, project: str, folder: Path, config: dict[str, Any]) -> None:
        self.run: Any = None
        if mode == "disabled":
            return
        try:
            import wandb

            identity = folder / "wandb_id"
            if not identity.exists():
                identity.write_text(os.urandom(6).hex())
            self.run = wandb.init(
                project=project,
                name=folder.name,
                dir=folder,
                config=config,
                id=identity.read_text(),
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
            )
        except Exception as error:  # whatever it is, the training matters more
            self._give_up(error)

    def write(self, record: dict[str, Any], step: int) -> None:
        """Send the numbers of ``record``."""
        if self.run is None:
            return
        try:
            kind = record["kind"]
            numbers = {f"{kind}/{k}": v for k, v in record.items() if isinstance(v, int | float)}
            self.run.log(numbers, step=step)
        except Exception as error:
            self._give_up(error)

    def finish(self, exit_code: int = 0) -> None:
        """End it."""
        if self.run is None:
            return
        try:
            self.run.finish(exit_code=exit_code)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.run = None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("wandb is off for this run: %s", reason)
