"""Runs as plain records: what ``runs/<name>/metrics.jsonl`` says, line by line, and the settings in
``config.yaml``.

Runs of other versions are read as what they are: their settings are text, by today's keys and by
others, and nothing is filled in.
"""

import json
import math
import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.run import plain_yaml
from pipeline.run.config_types import read_number
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training run: its name, its records in the order in which they were written, and its
    settings by dotted keys, which are empty where nobody knows them."""

    name: str
    records: list[Record]
    config: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def epochs(self) -> list[Record]:
        """The records of kind "epoch": one for every finished epoch, counted from 0."""
        return [record for record in self.records if record.get("kind") == "epoch"]

    @property
    def done(self) -> list[int]:
        """How many epochs were done at the end of each that has a record."""
        numbers = [epoch.get("epoch") for epoch in self.epochs]
        return [n + 1 if type(n) is int else i for i, n in enumerate(numbers, 1)]

    @property
    def estimator(self) -> str:
        """The name of its estimator, empty where nobody knows it."""
        return self.config.get("estimator.name", "")

    def series(self, name: str) -> list[float]:
        """The figure ``name`` of every finished epoch; NaN where that has none."""
        return [_number(epoch.get(name)) for epoch in self.epochs]


def read_run(path: Path) -> Run:
    """Read a run's folder, or a metrics file alone, which then gives its own name to the run.

    Raises:
        UserError: the file is missing, cannot be read, or holds a line that is no record.
    """
    if os.path.isdir(path):  # also where it may not be looked at, or its name is too long
        return Run(path.resolve().name, read_records(path / METRICS), read_config(path / CONFIG))
    return Run(path.stem, read_records(path))


def read_config(path: Path) -> dict[str, str]:
    """The settings in a run's ``config.yaml``, see ``flat``; empty where it is missing or cannot be
    read."""
    try:
        return flat(plain_yaml.load(path))
    except UserError:
        return {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted keys, as text of one line."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = shown(_text(value))
    return found


def shown(what: object) -> str:
    """``what`` in one line that any terminal and any file takes."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(what))


def _text(value: Any) -> str:
    """A value as text: the same for 1e-5, 0.00001 and 1.0e-05."""
    value = read_number(value)
    if isinstance(value, float):
        return f"{value:.10g}"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else math.nan


def read_records(path: Path) -> list[Record]:
    """Every record of a metrics file, without a last line that is not written to its end yet.

    Raises:
        UserError: as ``read_run`` does.
    """
    try:
        with open_file(path) as file:
            *lines, rest = file.read().split(b"\n")
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
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{place} is no JSON object; give a {METRICS} as a training writes it")
    return record
