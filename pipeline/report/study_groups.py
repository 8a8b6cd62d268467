"""The groups of a study: the trials that differ in their seed alone, and what came out of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.report.runs import Record
from pipeline.run.config import Config, flatten
from pipeline.run.study import Study, Trial, in_words, written


class Figure(NamedTuple):
    """The mean of a figure over the trials of a group, and its standard deviation; None of one
    trial."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """That of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def best(epochs: list[Record]) -> float:
    """The best top-1 on the validation images, in per cent."""
    return max(epoch["val_top1"] for epoch in epochs)


def last(epochs: list[Record]) -> float:
    """The top-1 on the validation images after the last epoch, in per cent."""
    return float(epochs[-1]["val_top1"])


def _mean(section: str, name: str) -> Callable[[list[Record]], float | None]:
    """The function that gives the mean of an indicator over the epochs."""

    def mean(epochs: list[Record]) -> float | None:
        values = [epoch.get("indicators", {}).get(section, {}).get(name) for epoch in epochs]
        return None if None in values else statistics.fmean(values)

    return mean


class Column(NamedTuple):
    """What is known of a trial: its name in a table, the format of its values there, and a function
    that takes it from the records of the epochs; None where they do not have it."""

    head: str
    digits: str
    of: Callable[[list[Record]], float | None]


# docs/indicators.md says what the indicators are.
COLUMNS = {
    "best": Column("best val top-1 (%)", ".2f", best),
    "last": Column("last val top-1 (%)", ".2f", last),
    "error": Column("estimating error", ".2f", _mean("total", "error")),
    "stability": Column("gradient stability", ".2e", _mean("total", "stability")),
    "official_error": Column("official error", ".2f", _mean("official", "estimating_error")),
    "official_stability": Column(
        "official stability", ".2e", _mean("official", "gradient_stability")
    ),
}


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone: the ``config`` of the first, how many are
    ``finished`` of how many in ``total``, and a ``Figure`` for each column that is known.

    ``varied``: the keys that other trials with the same estimator have another value of, with the
    group's own values in words.
    """

    config: Config
    varied: Mapping[str, str]
    finished: int
    total: int
    figures: Mapping[str, Figure]

    @property
    def estimator(self) -> str:
        """The estimator's name."""
        return self.config.estimator.name

    @property
    def options(self) -> dict[str, float]:
        """The values of the estimator's options."""
        return self.config.estimator_options

    @property
    def label(self) -> str:
        """What tells it from others, in words."""
        return in_words(self.estimator, self.varied)


def groups(study: Study) -> list[Group]:
    """The groups of ``study``: its estimators in the order of its trials, and the groups of each by
    the values of its options."""
    members: dict[tuple[str, ...], list[Trial]] = {}
    for trial in study.trials:
        key = (trial.config.estimator.name, *map("=".join, trial.settings.items()))
        members.setdefault(key, []).append(trial)
    found = [_group(trials, _varied(trials[0], study)) for trials in members.values()]
    order = list(dict.fromkeys(group.estimator for group in found))
    return sorted(found, key=lambda group: (order.index(group.estimator), *group.options.values()))


def _varied(trial: Trial, study: Study) -> dict[str, str]:
    name, values = trial.config.estimator.name, flatten(trial.config)
    alike = [other for other in study.trials if other.config.estimator.name == name]
    keys = dict.fromkeys(key for other in alike for key in other.settings)
    return {key: written(values[key]) for key in keys}


def _group(trials: list[Trial], varied: Mapping[str, str]) -> Group:
    finished = [trial.records() for trial in trials if trial.is_finished]
    figures = {}
    for name, column in COLUMNS.items():
        values = [value for epochs in finished if (value := column.of(epochs)) is not None]
        if values and len(values) == len(finished):
            figures[name] = Figure.of(values)
    return Group(trials[0].config, varied, len(finished), len(trials), figures)
