"""The curves of a comparison in one picture by matplotlib."""

import math
from typing import Any

from pipeline.report.comparison import Comparison
from pipeline.report.curves import Curve, Points, curves
from pipeline.report.palette import ON_OFF
from pipeline.report.pictures import marker, over_epochs, png
from pipeline.report.plots import TITLES

MOST_NAMED = 12  # curves that the legend names
LEGEND_COLUMNS = 2
LONGEST = 45  # characters of a name there


def overlay(comparison: Comparison) -> bytes:
    """A PNG file: a panel for each metric, and below them whose curve is which.

    Raises ImportError where matplotlib is not installed.
    """
    drawn = curves(comparison)
    named = min(sum(not curve.is_thin for curve in drawn), MOST_NAMED)
    height = 3.2 + 0.2 * math.ceil(named / LEGEND_COLUMNS)
    return png(lambda figure: _draw(figure, comparison.metrics, drawn), height)


def title(metric: str) -> str:
    """What a metric is called above its curves."""
    split, _, name = metric.partition("_")
    return f"{split} {TITLES[name]}" if name in TITLES else metric


def _draw(figure: Any, metrics: list[str], drawn: list[Curve]) -> None:
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_title(title(metric))
        for curve in sorted(drawn, key=lambda each: not each.is_thin):  # thin ones lie below
            _draw_curve(axes, curve, curve.points[metric])
        over_epochs(axes)
        _look_closer(axes, [curve.points[metric] for curve in drawn])
    _name(figure, panels[0], drawn)


def _draw_curve(axes: Any, curve: Curve, points: Points) -> None:
    done, values, deviations = points
    look = {"lw": 0.7, "alpha": 0.4} if curve.is_thin else {"lw": 1.8, "marker": marker(len(done))}
    axes.plot(done, values, color=curve.colour, ls=ON_OFF[curve.dash], label=curve.label, **look)
    if all(map(math.isnan, deviations)):
        return
    low, high = (
        [v + sign * d for v, d in zip(values, deviations, strict=True)] for sign in (-1, 1)
    )
    axes.fill_between(done, low, high, color=curve.colour, alpha=0.15, linewidth=0)


def _look_closer(axes: Any, every: list[Points]) -> None:
    """Let the values after the first quarter of the epochs fill the height: runs that are to be
    compared differ little at their end, and far less than from their beginning."""
    early = max((done[-1] for done, _, _ in every if done), default=0) / 4
    late = [v for p in every for n, v in zip(p.done, p.values, strict=True) if n > early and v == v]
    if late and min(late) < max(late):
        margin = 0.08 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)


def _name(figure: Any, axes: Any, drawn: list[Curve]) -> None:
    """A legend of the curves that are not thin, as many as it has room for."""
    names = [curve.label for curve in drawn if not curve.is_thin]
    lines = {line.get_label(): line for line in axes.get_lines()}
    shown = names[:MOST_NAMED]
    # The blank before them: matplotlib leaves out what begins with an underscore.
    labels = [f" {name}" if len(name) <= LONGEST else f" {name[:LONGEST]}…" for name in shown]
    handles = [lines[name] for name in shown]
    more = f"and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else None
    legend = figure.legend(
        handles, labels, loc="outside lower left", ncols=LEGEND_COLUMNS, title=more
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula
