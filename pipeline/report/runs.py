"""Runs as plain records: what ``runs/<name>/metrics.jsonl`` says, line by line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run.errors import UserError

METRICS = "metrics.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training run's name and its records, in the order in which they were written."""

    name: str
    records: list[Record]

    @property
    def epochs(self) -> list[Record]:
        """The records of kind "epoch": one for every finished epoch, counted from 0."""
        return [record for record in self.records if record.get("kind") == "epoch"]


def read_run(path: Path) -> Run:
    """Read a run's folder, or a metrics file alone, which then gives its own name to the run.

    Raises:
        UserError: the file is missing, cannot be read, or holds a line that is no record.
    """
    if path.is_dir():
        return Run(path.resolve().name, read_records(path / METRICS))
    return Run(path.stem, read_records(path))


def read_records(path: Path) -> list[Record]:
    """Every record of a metrics file, without a last line that is not written to its end yet.

    Raises:
        UserError: as ``read_run`` does.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a run's folder") from None
    records = [_record(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
    try:
        return [*records, _record(rest, "")]
    except UserError:  # the run is still writing this line, or has ended with a whole one
        return records


def _record(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{place} is no JSON object; give a {METRICS} as a training writes it")
    return record
