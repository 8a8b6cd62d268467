"""What trackers are given of a run's records, one by one: names, values and axes.

A training that is under way and a run that is sent afterwards go through the same functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Histogram(NamedTuple):
    """How many values lie in each of equally wide bins, of which the first begins at -``limit`` and
    the last ends at ``limit``."""

    limit: float
    counts: Sequence[int]

    def edges(self) -> list[float]:
        """Where the bins begin, and where the last one ends."""
        width = 2 * self.limit / len(self.counts)
        return [width * each - self.limit for each in range(len(self.counts) + 1)]


Value = float | Histogram


def flatten(record: Mapping[str, Any], name: str) -> dict[str, Value]:
    """The numbers and histograms of a record, nested ones included, by names such as
    "epoch/val_top1" for those of one that is called ``name``."""
    values: dict[str, Value] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and value.keys() == set(Histogram._fields):
            values[f"{name}/{key}"] = Histogram(**value)
        elif isinstance(value, Mapping):
            values |= flatten(value, f"{name}/{key}")
        elif isinstance(value, int | float):
            values[f"{name}/{key}"] = value
    return values


def points(
    record: Mapping[str, Any], step: int, batch_size: int
) -> tuple[dict[str, Value], dict[str, int]]:
    """What trackers are given of ``record``, which was made after ``step`` steps of ``batch_size``
    images: the values and the axes of ``Tracker.write``."""
    axes = {"step": step, "images_seen": step * batch_size}
    if "epoch" in record:
        axes["epoch"] = record["epoch"]
    return flatten(record, record["kind"]), axes
