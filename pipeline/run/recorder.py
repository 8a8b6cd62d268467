"""What a run records: metrics.jsonl always, and wandb when asked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.run.config import Config, to_dict
from pipeline.run.console import check_file, logger
from pipeline.run.errors import UserError
from pipeline.run.files import free_name, open_file, write_atomically
from pipeline.run.lines import LineFile

# What wandb plots over what, and which value stands for the whole run.
AXES: dict[str, dict[str, str]] = {
    "step": {},
    "epoch": {},
    "step/*": {"step_metric": "step"},
    "epoch/*": {"step_metric": "epoch"},
    "epoch/val_top1": {"step_metric": "epoch", "summary": "max"},
    "epoch/val_loss": {"step_metric": "epoch", "summary": "min"},
}


def flatten(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers of a record, nested ones included, by names such as "epoch/val_top1" for those
    of one that is called ``name``."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{name}/{key}")
        elif isinstance(value, int | float):
            numbers[f"{name}/{key}"] = value
    return numbers


class Recorder:
    """Takes the records of a run; does nothing before ``open``, as in all but the main process."""

    def __init__(self) -> None:
        self.lines: JsonLines | None = None
        self.wandb: Wandb | None = None

    def open(self, config: Config, size: int = 0, seen: int | None = None) -> None:
        """Begin or go on: metrics.jsonl in the run's folder, cut to ``size`` bytes, and wandb.

        ``seen``: how long the file was when the run was looked at.
        """
        folder = config.run_folder
        self.lines = JsonLines(folder / "metrics.jsonl", size, seen)
        self.wandb = Wandb(config.log.wandb, config.log.project, folder, to_dict(config))

    def write(self, record: dict[str, Any], step: int) -> None:
        """Add ``record``, of plain values, made after ``step`` steps.

        Raises UserError where metrics.jsonl or log.txt cannot be written; the lines are tried again
        with the next record.
        """
        if self.wandb:
            self.wandb.write(record, step)
        if self.lines:
            try:
                self.lines.write(record)
                check_file()
            except OSError as error:
                raise UserError(
                    f"cannot write {error.filename}: {error.strerror}; repair that or make room, "
                    "and start it again to go on"
                ) from None

    def size(self) -> int:
        """The length of metrics.jsonl in bytes."""
        return self.lines.size() if self.lines else 0

    def close(self, exit_code: int = 0) -> None:
        """End wandb's run; ``exit_code`` is not 0 where the training did not come to its end."""
        if self.wandb:
            self.wandb.finish(exit_code)


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


class Wandb:
    """Weights & Biases, if asked for; a failure is one warning and never the end of a run."""

    def __init__(self, mode: str, project: str, folder: Path, config: dict[str, Any]) -> None:
        self.run: Any = None
        if mode == "disabled":
            return
        try:
            import wandb

            identity = folder / "wandb_id"
            if not identity.exists():
                write_atomically(identity, os.urandom(6).hex().encode())
            with open_file(identity) as file:
                name = file.read(64).decode()
            self.run = wandb.init(
                project=project,
                name=folder.name,
                dir=folder,
                config=config,
                id=name,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
            )
            for metric, options in AXES.items():
                self.run.define_metric(metric, **options)
        except Exception as error:  # whatever it is, the training matters more
            self._give_up(error)

    def write(self, record: dict[str, Any], step: int) -> None:
        """Send the numbers of ``record``, beside the axes ``step`` and
        ``epoch``.

        wandb's own step would drop what a resumed run repeats: it must never fall.
        """
        if self.run is None:
            return
        try:
            axes = {"step": step, **({"epoch": record["epoch"]} if "epoch" in record else {})}
            self.run.log({**flatten(record, record["kind"]), **axes})
        except Exception as error:
            self._give_up(error)

    def finish(self, exit_code: int = 0) -> None:
        """End wandb's run."""
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
