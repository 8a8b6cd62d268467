"""What a run records: metrics.jsonl always, and its numbers in the trackers that are asked for."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.run.config import Config
from pipeline.run.console import check_file, logger
from pipeline.run.errors import UserError
from pipeline.run.files import free_name, open_file, write_atomically
from pipeline.run.lines import LineFile
from pipeline.run.origin import FILE as ORIGIN
from pipeline.run.origin import origin_of
from pipeline.run.points import points
from pipeline.run.trackers import Tracker, open_trackers


class Recorder:
    """Takes the records of a run; does nothing before ``open``, as in all but the main process."""

    def __init__(self) -> None:
        self.lines: JsonLines | None = None
        self.trackers: list[Tracker] = []
        self.batch_size = 0

    def open(self, config: Config, size: int = 0, seen: int | None = None) -> None:
        """Begin or go on: metrics.jsonl in the run's folder, cut to ``size`` bytes, origin.json,
        and trackers.

        ``seen``: how long the first one was when the run was looked at.
        """
        folder = config.run_folder
        self.lines = JsonLines(folder / "metrics.jsonl", size, seen)
        origin = origin_of(config)
        write_atomically(folder / ORIGIN, json.dumps(origin, indent=2).encode())
        self.trackers = open_trackers(config, origin)
        self.batch_size = config.data.batch_size

    def write(self, record: dict[str, Any], step: int) -> None:
        """Add ``record``, of plain values, made after ``step`` steps.

        Raises UserError where metrics.jsonl or log.txt cannot be written; the lines are tried again
        with the next record.
        """
        for tracker in self.trackers:
            tracker.write(*points(record, step, self.batch_size))
        if self.lines:
            try:
                self.lines.write(record)
                check_file()
            except OSError as error:
                raise UserError(
                    f"cannot write {error.filename}: {error.strerror}; repair that or make room, "
                    "and start it again to go on"
                ) from None

    def write_all(self, records: Iterable[dict[str, Any]], step: int) -> None:
        """Add ``records``, all made after ``step`` steps, as ``write`` does."""
        for record in records:
            self.write(record, step)

    def size(self) -> int:
        """The length of metrics.jsonl in bytes."""
        return self.lines.size() if self.lines else 0

    def alert(self, text: str) -> None:
        """Tell who watches from afar that the training cannot go on."""
        for tracker in self.trackers:
            tracker.alert(text)

    def close(self, exit_code: int = 0) -> None:
        """End the trackers' runs; ``exit_code`` is that of the command, not 0 where the training
        did not come to its end."""
        for tracker in self.trackers:
            tracker.finish(exit_code)


class JsonLines:
    """metrics.jsonl: one JSON object a line, written at once; one process writes it.

    ``size`` is how many bytes long the file was at the checkpoint that the run goes on from: what
    came after it is cut off. Raises UserError while another process writes the file, or if it did
    since the file was ``seen`` to have that many bytes, and OSError where it cannot be opened.
    """

    def __init__(self, path: Path, size: int = 0, seen: int | None = None) -> None:
        self.file = LineFile(path)
        _lock(self.file)
        if seen is not None and self.size() != seen:
            raise UserError(
                f"another process trained this run meanwhile, {path.parent}; start again"
            )
        if self.size() < size:
            logger.warning("%s is shorter than at the checkpoint: lines are missing", path)
        elif self.size() > size:
            self.file.cut(size)

    def write(self, record: dict[str, Any]) -> None:
        """Append ``record``; raises OSError as ``LineFile.add`` does."""
        self.file.add(json.dumps(record))

    def size(self) -> int:
        """The length of the file in bytes."""
        return self.file.size()


def is_training(folder: Path) -> bool:
    """Whether a process, as far as its lock is seen here, trains the run in ``folder``."""
    if fcntl is None:
        return False
    try:
        with open_file(folder / "metrics.jsonl") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # there is no file, or no lock on its file system
        return False
    return False


def _lock(lines: LineFile) -> None:
    """Keep other processes from writing the same run, until this one ends."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(lines.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        folder = lines.path.parent
        raise UserError(
            f"another process is training this run, {folder}; stop it, or set "
            f"run.name={free_name(folder)} to start another"
        ) from None
    except OSError:  # a file system without locks
        pass
