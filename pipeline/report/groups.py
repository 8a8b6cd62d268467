"""In which settings runs differ, and groups of runs that differ in their seed alone."""

import os.path
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from pipeline.report.runs import Run

PLACE = ("run.name", "run.dir")  # where a run lies says nothing about its training
MISSING = "–"  # what nobody knows
APART = ("seed", *PLACE)  # in what the runs of a group may differ


class Group(NamedTuple):
    """Runs that differ in ``APART`` alone; most groups are a single run, whose name is theirs."""

    label: str
    runs: list[Run]


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which the settings of ``runs`` differ. Runs without settings do not count."""
    known = [run.config for run in runs if run.config]
    every = dict.fromkeys(key for config in known for key in config)
    return [k for k in every if k not in PLACE and len({config.get(k) for config in known}) > 1]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """``runs`` in groups, in the order of their first ones. A run without settings stays alone."""
    found: dict[Hashable, list[Run]] = {}
    for run in runs:
        settings = frozenset(item for item in run.config.items() if item[0] not in APART)
        found.setdefault(settings or run.name, []).append(run)
    labels = [_label(group) for group in found.values()]
    keys = [key for key in differing(runs) if key not in APART]
    return [
        Group(label if labels.count(label) == 1 else _settings(group, keys), group)
        for label, group in zip(labels, found.values(), strict=True)
    ]


def _label(runs: Sequence[Run]) -> str:
    """The name of a run alone; of several what all their names begin with, and a star."""
    prefix = os.path.commonprefix([run.name for run in runs])
    return prefix if len(runs) == 1 else f"{prefix}*" if prefix else f"{len(runs)} runs"


def _settings(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """What tells a group from others whose names begin alike."""
    return ", ".join(f"{key}={runs[0].config.get(key, MISSING)}" for key in keys)
