"""The runs that a person names, with names that tell them apart; what is none is left out."""

import os.path
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.report.runs import METRICS, Run, read_run, shown
from pipeline.run.errors import UserError

UNKNOWN = "its settings and its size are unknown"


def gather(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in folders or metrics files, each once, and a line for each that is left out or of
    which something is missing."""
    runs: dict[Path, Run] = {}
    left_out = []
    for path in paths:
        place = path.parent if path.name == METRICS else path
        key = Path(os.path.realpath(place))
        if key in runs:
            left_out.append(f"{shown(path)} is named twice; it is shown once")
            continue
        try:
            runs[key] = _read(place)
        except UserError as error:
            left_out.append(f"left out: {shown(error)}")
            continue
        if not runs[key].config:
            left_out.append(f"{shown(path)} has no config.yaml that can be read: {UNKNOWN}")
    return [replace(run, name=name_of(key, list(runs))) for key, run in runs.items()], left_out


def _read(path: Path) -> Run:
    run = read_run(path)
    if not run.config and not run.epochs:
        raise UserError(f"{path} holds no records of a training; give a run's folder")
    return run


def name_of(path: Path, paths: Sequence[Path]) -> str:
    """The last part of ``path``, with as many before it as tell it from the other ``paths``."""
    ends = [path.parts[-length:] for length in range(1, len(path.parts) + 1)]
    counts = (sum(other.parts[-len(end) :] == end for other in paths) for end in ends)
    return shown(Path(*next(end for end, count in zip(ends, counts, strict=True) if count == 1)))
