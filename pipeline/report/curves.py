"""The curves of a comparison, whatever draws them: one for each run, and the mean of a group."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.report.comparison import Comparison
from pipeline.report.figures import mean_and_deviation
from pipeline.report.groups import Group
from pipeline.report.palette import styles
from pipeline.report.runs import Run


class Points(NamedTuple):
    """Values over the epochs done, and by how much runs deviate there (NaN for a run alone)."""

    done: list[int]
    values: list[float]
    deviations: list[float]


class Curve(NamedTuple):
    """What to call it, how to draw it, and its points by metric. The runs of a group that has a
    mean stand back: ``is_thin``, and solid. ``dash`` is one of ``palette.DASHES``."""

    label: str
    colour: str
    dash: str
    is_thin: bool
    points: dict[str, Points]


def curves(comparison: Comparison) -> list[Curve]:
    """The curves of ``comparison``, group by group: the mean of a group before its runs."""
    looks = styles([group.runs[0].estimator for group in comparison.groups])
    return [
        Curve(label, colour, "solid" if is_thin else dash, is_thin, points)
        for group, (colour, dash) in zip(comparison.groups, looks, strict=True)
        for label, is_thin, points in _of_group(group, comparison.metrics)
    ]


def _of_group(
    group: Group, metrics: Sequence[str]
) -> Iterator[tuple[str, bool, dict[str, Points]]]:
    is_alone = len(group.runs) == 1
    if not is_alone:
        label = f"{group.label} (mean of {len(group.runs)})"
        yield label, False, {metric: mean(group.runs, metric) for metric in metrics}
    for run in group.runs:
        yield run.name, not is_alone, {metric: mean([run], metric) for metric in metrics}


def mean(runs: Sequence[Run], metric: str) -> Points:
    """The mean of ``runs`` over the epochs that all of them have done."""
    if len(runs) == 1:
        return Points(runs[0].done, runs[0].series(metric), [math.nan] * len(runs[0].done))
    series = [dict(zip(run.done, run.series(metric), strict=True)) for run in runs]
    done = sorted(set.intersection(*(set(each) for each in series)))
    pairs = [mean_and_deviation([each[n] for each in series]) for n in done]
    return Points(done, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
