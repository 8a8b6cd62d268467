"""Runs that are sent to wandb from their own files: config.yaml, origin.json and metrics.jsonl."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.report.runs import METRICS, Record, Run, read_run
from pipeline.run.commands import command_line
from pipeline.run.config import Config, load_config
from pipeline.run.console import logger
from pipeline.run.errors import UserError, first_line
from pipeline.run.files import open_file
from pipeline.run.origin import FILE as ORIGIN
from pipeline.run.points import points
from pipeline.run.recorder import is_training
from pipeline.run.sweep import IDENTITY
from pipeline.run.wandb_run import Wandb, forget

# What wandb would say of the machine that sends, which is not the one that trained.
SETTINGS = {
    "quiet": True,
    "console": "off",
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def send_all(folders: Iterable[Path], mode: str, *, best: bool) -> int:
    """Send each run as ``send`` does; returns how many could not be sent, each with a line."""
    failed = 0
    for folder in folders:
        try:
            send(folder, mode, best=best)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
    return failed


def send(folder: Path, mode: str, *, best: bool) -> None:
    """Send the run in ``folder`` to wandb in full, in the place of what wandb has of it.

    ``mode``: "online", or "offline" for a folder in the run's own that ``wandb sync`` takes.
    ``best``: with the best checkpoint. Raises UserError where ``folder`` holds no run, or one
    without records, or where wandb does not take it.
    """
    config, run = _config_of(folder), read_run(folder)
    if not run.records:
        raise UserError(f"{folder} has no records yet; send it when {METRICS} holds some")
    if is_training(folder):
        logger.warning("%s is still training; send it again when it has ended", folder)
    with _explained(folder):
        tracker = Wandb(config, _origin_of(folder), mode, settings=SETTINGS)
        for record, step in with_steps(run.records):
            tracker.write(*points(record, step, config.data.batch_size))
        if best:
            tracker.add_best()
        tracker.close(0 if _is_whole(run, config) else 1)
        logger.info("%s: %d records, %s", folder, len(run.records), _place(tracker, mode))
        if mode == "online" and tracker.rows() > len(run.records):
            logger.warning(
                "%s: wandb keeps rows of steps that were done twice; to be rid of them, delete "
                "that run there, remove %s and send it again",
                folder,
                folder / IDENTITY,
            )


def _config_of(folder: Path) -> Config:
    """The config of the run in ``folder``, wherever that lies by now."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder} is no run, it has no config.yaml; give a folder in runs/")
    place = folder.resolve()
    return load_config(file).changed({"run.dir": str(place.parent), "run.name": place.name})


def _origin_of(folder: Path) -> dict[str, Any]:
    """What the run noted of its machine and code; nothing where it is older than that file."""
    try:
        with open_file(folder / ORIGIN) as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Within this context, what wandb raises is a UserError about ``folder``."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        forget()
        raise UserError(
            f"{folder}: wandb does not take it ({first_line(error)}); log in with wandb login, or "
            f"write it for later: {command_line('sync', '--offline', str(folder))}"
        ) from None


def with_steps(records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    """Each record with the steps that had been done: an epoch's comes after that of its last
    step."""
    step = 0
    for record in records:
        step = record.get("step", step)
        yield record, step


def _is_whole(run: Run, config: Config) -> bool:
    return any(record["epoch"] == config.train.epochs - 1 for record in run.epochs)


def _place(tracker: Wandb, mode: str) -> str:
    """Where the run is now, and what is left to do."""
    if mode == "online":
        return f"sent to {tracker.run.url}"
    folder = shlex.quote(str(Path(tracker.run.dir).parent))
    return f"written; where there is a network: wandb sync {folder}"
