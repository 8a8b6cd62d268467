"""The pictures of a study: error and stability in a plane, accuracy over o_end, and the curves.

Each draws into an empty figure of matplotlib's. An estimator has its colour in all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.report.estimator_curves import REACH, curves_of
from pipeline.report.labels import label
from pipeline.report.palette import colour_of
from pipeline.report.pictures import LIGHT
from pipeline.report.study_groups import Group
from pipeline.run.study import in_words

OPTION = "o_end"  # the option over which accuracy is drawn
BARS = "mean and standard deviation over the seeds"
COLUMNS = 4  # estimators beside each other
LIMIT = 2.3  # the surrogates are drawn from -LIMIT to LIMIT
DASHES = {"start": ":", "middle": "--", "end": "-"}  # of the curves, by the time in the training
Groups = Sequence[Group]


class Picture(NamedTuple):
    """Which of the groups are in a picture, none of which leave it out; what draws them; and its
    height in inches."""

    choose: Callable[[Groups], Groups]
    draw: Callable[[Groups, Any], None]
    height: Callable[[Groups], float]


def in_plane(groups: Groups) -> list[Group]:
    """The groups that have error and stability."""
    return [group for group in groups if {"error", "stability"} <= group.figures.keys()]


def draw_plane(groups: Groups, figure: Any) -> None:
    """A point for each group, with its standard deviations: the estimating error to the right, the
    gradient stability upwards. Gradients are steadier where that is smaller."""
    axes = figure.subplots()
    axes.set_title(BARS)
    axes.set_xlabel("estimating error, the norm of sign(w) - f(w)")
    axes.set_ylabel("gradient stability, the variance of |g|")
    _count_by_factors(axes)
    colours = [colour_of(group.estimator) for group in groups]
    places = [(group.figures["error"], group.figures["stability"]) for group in groups]
    for (x, y), colour in zip(places, colours, strict=True):
        _points(axes, x.mean, y.mean, colour, xerr=x.deviation, yerr=y.deviation)
    means = [(x.mean, y.mean) for x, y in places]
    label(axes, means, [group.label for group in groups], colours)


def _count_by_factors(axes: Any) -> None:
    """Let the values upwards grow by factors, as 1, 2, 5, 10."""
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:.0e}")
    axes.grid(visible=True, axis="both")
    axes.margins(0.1)


def _points(axes: Any, x: Any, y: Any, colour: str, **options: Any) -> None:
    style = {"fmt": "o", "markersize": 5, "elinewidth": 1, "capsize": 2}
    axes.errorbar(x, y, color=colour, **{**style, **options})


def over_option(groups: Groups) -> list[Group]:
    """The groups that differ in ``OPTION`` alone, from the smallest value on; none of fewer than
    two."""
    found = [
        group
        for group in groups
        if OPTION in group.options
        and group.varied.keys() == {f"estimator.{OPTION}"}
        and group.finished
    ]
    return sorted(found, key=lambda group: group.options[OPTION]) if len(found) > 1 else []


def draw_option(groups: Groups, figure: Any) -> None:
    """The best and the last accuracy over the values of ``OPTION``, with standard deviations."""
    axes = figure.subplots()
    axes.set_title(BARS)
    values = [group.options[OPTION] for group in groups]
    aside = 0.004 * (values[-1] - values[0])  # so that no bar hides another
    colour = colour_of(groups[0].estimator)
    for name, line, shift in (("best", "-", -aside), ("last", ":", aside)):
        figures = [group.figures[name] for group in groups]
        _points(
            axes, [value + shift for value in values], [each.mean for each in figures], colour,
            yerr=[each.deviation or 0.0 for each in figures], linestyle=line, label=f"{name} epoch",
        )  # fmt: skip
    axes.set(xlabel=f"{groups[0].estimator}: {OPTION}", ylabel="val top-1 (%)", xticks=values)
    axes.legend()


def with_curves(groups: Groups) -> list[Group]:
    """One group for each estimator and values of its options."""
    found = {(group.estimator, *group.options.items()): group for group in reversed(groups)}
    return list(reversed(found.values()))


def draw_curves(groups: Groups, figure: Any) -> None:
    """For each estimator its surrogate f, and below it the factor h of its gradient."""
    panels = figure.subplots(2 * rows(groups), COLUMNS, sharex=True, squeeze=False)
    for place in range(rows(groups) * COLUMNS):
        row, column = divmod(place, COLUMNS)
        pair = panels[2 * row, column], panels[2 * row + 1, column]
        if place < len(groups):
            _draw_pair(pair, groups[place])
        else:
            for axes in pair:
                axes.set_visible(False)
    _add_legend(figure, panels[0, 0])
    for axes, name in zip(panels[:, 0], rows(groups) * ("f(x)", "h(x)"), strict=True):
        axes.set_ylabel(name)


def rows(groups: Groups) -> int:
    """The rows of estimators in the picture of the curves."""
    return -(-len(groups) // COLUMNS)


def _draw_pair(pair: tuple[Any, Any], group: Group) -> None:
    above, below = pair
    colour = colour_of(group.estimator)
    above.set_title(_title(group))
    above.set_ylim(-LIMIT, LIMIT)
    above.plot((-REACH, 0, 0, REACH), (-1, -1, 1, 1), color=LIGHT.aside, linewidth=0.8)
    for moment, curve in curves_of(group.estimator, group.options).items():
        style = {"color": colour, "linestyle": DASHES[moment], "linewidth": 1.2}
        above.plot(curve.x, curve.f, **style)
        below.plot(curve.x, curve.h, **style)


def _title(group: Group) -> str:
    """The estimator, and those of its options that are varied."""
    options = {key: value for key, value in group.varied.items() if key.startswith("estimator.")}
    return in_words(group.estimator, options)


def _add_legend(figure: Any, axes: Any) -> None:
    """What the dashes mean, below all."""
    lines = [
        axes.plot([], [], color=LIGHT.text, linestyle=dash, linewidth=1.2, label=moment)[0]
        for moment, dash in DASHES.items()
    ]
    lines += axes.plot([], [], color=LIGHT.aside, linewidth=0.8, label="sign(x)")
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


PICTURES = {
    "plane.png": Picture(in_plane, draw_plane, lambda groups: 4.6),
    "o_end.png": Picture(over_option, draw_option, lambda groups: 3.4),
    "curves.png": Picture(with_curves, draw_curves, lambda groups: 0.4 + 2.8 * rows(groups)),
}
