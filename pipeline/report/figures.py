"""The figures of a run, and their mean and deviation over runs that differ in their seed alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from pipeline.report.runs import Run
from pipeline.run.config import Config, make_config
from pipeline.run.errors import UserError

Figures = dict[str, float]  # by their names; NaN where nobody knows one
Count = Callable[[Config], Mapping[str, Any]]  # counts a network, as pipeline.train.counting does
# The settings that decide what a network holds and costs.
NETWORK = (
    "model.arch",
    "model.bits",
    "model.num_classes",
    "data.dataset",
    "data.size",
    "data.resize",
)
UNKNOWN = (math.nan, math.nan)
LESS_IS_BETTER = ("loss", "error", "seconds", "data_wait")  # how names of metrics end


def figures(run: Run, metric: str, cost: tuple[float, float] = UNKNOWN) -> Figures:
    """Best and last value of ``metric``, after how many epochs it was at its best ("at"), epochs
    done, images per second in the median epoch, hours, and the network's size in bytes and OPs per
    image, which are its ``cost``."""
    values = [(v, done) for v, done in zip(run.series(metric), run.done, strict=True) if v == v]
    choose = min if metric.endswith(LESS_IS_BETTER) else max
    best, at = choose(values, key=lambda each: each[0], default=UNKNOWN)
    speeds = [v for v in run.series("images_per_second") if v == v]
    return {
        "best": best,
        "at": at,
        "last": values[-1][0] if values else math.nan,
        "epochs": max(run.done, default=0),
        "images/s": median(speeds) if speeds else math.nan,
        "hours": sum(v for v in run.series("seconds") if v == v) / 3600,
        "size": cost[0],
        "OPs": cost[1],
    }


def planned(run: Run) -> float:
    """How many epochs the run is to have; NaN where nobody knows."""
    text = run.config.get("train.epochs", "")
    return int(text) if text.isdecimal() else math.nan


def is_finished(run: Run) -> bool:
    """Whether the run has done all the epochs that it is to have."""
    return max(run.done, default=0) >= planned(run)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the values that are known, and their sample standard deviation; NaN where there
    are too few of them."""
    known = [value for value in values if value == value]
    mean = fmean(known) if known else math.nan
    if len(known) < 2:
        return mean, math.nan
    return mean, math.dist(known, [mean] * len(known)) / math.sqrt(len(known) - 1)


class Costs:
    """What networks cost, by the settings of their runs; each distinct one is counted once."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.known: dict[tuple[str, ...], tuple[float, float]] = {}

    def of(self, run: Run) -> tuple[float, float]:
        """Size in bytes, binary weights packed, and OPs per image; NaN where the settings of
        ``run`` do not say which network it is, or another version does not have it."""
        words = tuple(f"{key}={run.config[key]}" for key in NETWORK if key in run.config)
        if "model.arch" not in run.config:
            return UNKNOWN
        if words not in self.known:
            self.known[words] = self._count(words)
        return self.known[words]

    def _count(self, words: Sequence[str]) -> tuple[float, float]:
        try:
            total = self.count(make_config({}, words, name="compared"))["total"]
        except UserError:
            return UNKNOWN
        return total["packed_bytes"], total["ops"]
