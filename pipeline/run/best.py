"""best.pt: the checkpoint of the best epoch, which is kept and, where it is lost, restored."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.run import checkpoint
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.files import write_atomically
from pipeline.run.resume import Start

Record = dict[str, Any]  # of an epoch: its number and its validation metrics

NONE: Record = {"epoch": -1, "val_top1": -1.0}


def restore(folder: Path, start: Start) -> Record:
    """Let best.pt in ``folder``, that of a run's checkpoints, be of the best epoch that ``start``
    knows, and return the record of the epoch that it is of.

    It is copied from another checkpoint of that epoch where it is lost. Where there is none, it
    becomes or stays that of the best epoch that is left, and one line says so.
    """
    wanted, path = start.state["best"], folder / "best.pt"
    if wanted["epoch"] < 0:
        return NONE
    left = {}
    for candidate in dict.fromkeys(_candidates(folder, start, wanted["epoch"] + 1)):
        record = _record(start.state) if candidate == start.path else record_of(candidate)
        if record == wanted:
            _copy(candidate, path)
            return record
        if record["epoch"] < start.state["epoch"]:  # else of another continuation
            left[candidate] = record
    best = max(left, key=lambda each: left[each]["val_top1"], default=path)
    record = left.get(best, NONE)
    if record["epoch"] >= 0:
        _copy(best, path)
    logger.warning("best.pt of epoch %d is lost; %s", wanted["epoch"] + 1, _what_is(record))
    return record


def _what_is(record: Record) -> str:
    if record["epoch"] < 0:
        return "the best epoch from now on becomes best.pt"
    return f"best.pt is that of epoch {record['epoch'] + 1}, until a better one comes"


def _candidates(folder: Path, start: Start, epoch: int) -> Iterator[Path]:
    """Files that may be of the best epoch, the cheapest first."""
    yield folder / "best.pt"
    yield start.path
    for place in dict.fromkeys((folder, start.path.parent)):
        yield place / "best.pt"
        yield place / f"epoch_{epoch:04d}.pt"
    yield from sorted(folder.glob("epoch_*.pt"))


def record_of(path: Path) -> Record:
    """The record of the epoch at whose end the checkpoint ``path`` was saved; ``NONE`` where it is
    none, or not one of ours."""
    if not path.exists():
        return NONE
    with contextlib.suppress(UserError):
        return _record(checkpoint.load(path))
    return NONE


def _record(state: dict[str, Any]) -> Record:
    """The record in the state of a checkpoint; ``NONE`` as above."""
    last = state.get("last")
    is_end = state.get("format") == checkpoint.FORMAT and state["batch"] == 0
    return dict(last) if is_end and last else NONE


def _copy(source: Path, target: Path) -> None:
    if source != target:
        write_atomically(target, source.read_bytes())
