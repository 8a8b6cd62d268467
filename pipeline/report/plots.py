"""The pictures of a training, drawn by matplotlib where that is installed."""

import math
from itertools import cycle
from pathlib import Path
from typing import Any

from pipeline.report import heatmaps
from pipeline.report.palette import DASHES, ON_OFF, colour_of
from pipeline.report.pictures import LIGHT, Theme, marker, over_epochs, png
from pipeline.report.runs import Record, Run, read_run
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.files import write_atomically

COLUMNS = 3  # of panels
TITLES = {"loss": "cross-entropy (nats)", "top1": "top-1 (%)"}
# Figures of an epoch that are neither metrics nor parameters of the estimator: the title of their
# panel, and what they are multiplied with there.
FURTHER = {
    "lr": ("learning rate", 1),
    "images_per_second": ("images per second", 1),
    "data_wait": ("waiting for data (% of time)", 100),
}
OTHER_NUMBERS = ("epoch", "seconds", *FURTHER)
Lines = dict[str, list[float]]  # by their labels: a value for each epoch


def draw_run(folder: Path) -> Path | None:
    """Draw the run in ``folder`` to its ``plots/training.png``, and to ``plots/indicators.png`` if
    it has some; the first path, or None if that fails or no epoch is done.

    Whatever fails is one warning: a picture is no reason to end a run.
    """
    path = folder / "plots" / "training.png"
    try:
        run = read_run(folder)
        if not run.epochs:
            return None
        contents = {path: training(run)}
        if watched(run):
            contents[path.with_stem("indicators")] = indicators(run)
        path.parent.mkdir(exist_ok=True)
        for each, content in contents.items():
            write_atomically(each, content)
    except ImportError:
        logger.warning("no picture of the training: matplotlib is not installed")
    except Exception as error:  # matplotlib raises what it likes
        reason = first_line(error)
        logger.warning("no picture of the training: %s", reason)
    else:
        return path
    return None


def training(run: Run, theme: Theme = LIGHT) -> bytes:
    """A PNG file of a run over its epochs: see ``panels``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the run has not finished an epoch.
    """
    if not run.epochs:
        raise ValueError(f"{run.name} has not finished an epoch")
    rows = math.ceil(len(panels(run.epochs)) / COLUMNS)
    return png(lambda figure: _draw(figure, run, theme), 0.4 + 2.3 * rows, theme)


def indicators(run: Run, theme: Theme = LIGHT) -> bytes:
    """A PNG file of the indicators of each layer over the epochs that have some, see ``watched``.

    Raises ImportError where matplotlib is not installed.
    """
    epochs = watched(run)
    return png(lambda figure: heatmaps.draw(figure, epochs), heatmaps.height(epochs), theme)


def watched(run: Run) -> list[Record]:
    """The records of the epochs that hold indicators by layer, such as this version writes."""
    return [epoch for epoch in run.epochs if "total" in epoch.get("indicators", ())]


def panels(epochs: list[Record]) -> dict[str, Lines]:
    """What is drawn, by the titles of the panels: the metrics, the estimator's parameters
    that change, the learning rate, images per second, and the share of the time spent waiting for
    data."""
    parameters = changing_parameters(epochs)
    drawn = {TITLES.get(name, name): _splits(epochs, name) for name in metrics(epochs)}
    drawn[f"estimator: {', '.join(parameters)}"] = parameters
    drawn |= {title: _further(epochs, name) for name, (title, _) in FURTHER.items()}
    return {title: lines for title, lines in drawn.items() if lines}


def _splits(epochs: list[Record], name: str) -> Lines:
    return {split: [epoch[f"{split}_{name}"] for epoch in epochs] for split in ("train", "val")}


def _further(epochs: list[Record], name: str) -> Lines:
    """The line of one of ``FURTHER``; none where an epoch does not have it."""
    factor = FURTHER[name][1]
    return {name: [factor * e[name] for e in epochs]} if all(name in e for e in epochs) else {}


def changing_parameters(epochs: list[Record]) -> dict[str, list[float]]:
    """The estimator's parameters that change in the run, by name: a value for each epoch."""
    names = [
        name
        for name, value in epochs[0].items()
        if isinstance(value, int | float)
        and name not in OTHER_NUMBERS
        and not name.startswith(("train_", "val_"))
    ]
    values = {name: [epoch[name] for epoch in epochs] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def metrics(epochs: list[Record]) -> list[str]:
    """The names of the metrics that were recorded in training and in evaluation alike."""
    names = [name.removeprefix("train_") for name in epochs[0] if name.startswith("train_")]
    return [name for name in names if f"val_{name}" in epochs[0]]


def _draw(figure: Any, run: Run, theme: Theme) -> None:
    drawn, colour = panels(run.epochs), colour_of(run.estimator)
    rows = math.ceil(len(drawn) / COLUMNS)
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False)
    figure.suptitle(run.name, x=0.01, ha="left", weight="bold", parse_math=False)
    for axes, (title, lines) in zip(grid.flat, drawn.items(), strict=False):
        axes.set_title(title)
        _draw_lines(axes, lines, colour, theme)
        if title == TITLES["top1"]:
            _mark_best(axes, lines["val"], colour, theme)
    _label(grid, len(drawn))


def _label(grid: Any, count: int) -> None:
    """Label what is below, and leave out the panels after the first ``count``."""
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[max(count - COLUMNS, 0) : count]:
        axes.tick_params(labelbottom=True)
        over_epochs(axes)


def _draw_lines(axes: Any, lines: Lines, colour: str, theme: Theme) -> None:
    done = range(1, len(next(iter(lines.values()))) + 1)
    dashes = cycle(DASHES)
    for label, values in lines.items():
        is_aside = label == "train"
        style = (
            {"color": theme.aside} if is_aside else {"color": colour, "ls": ON_OFF[next(dashes)]}
        )
        axes.plot(done, values, marker=marker(len(values)), label=label, **style)
    if len(lines) > 1:
        axes.legend(loc="best")
    _scale(axes, lines)


def _scale(axes: Any, lines: Lines) -> None:
    """Logarithmic for what spans a wide range, and from 0 for a speed and a share of the time."""
    everything = sum(lines.values(), [])
    if min(everything) > 0 and max(everything) > 100 * min(everything):
        axes.set_yscale("log")
        axes.minorticks_off()
    elif not lines.keys().isdisjoint(("images_per_second", "data_wait")):
        axes.axhline(0, linewidth=0)  # so that the margin above is one of the whole axis
        axes.set_ylim(bottom=0)


def _mark_best(axes: Any, values: list[float], colour: str, theme: Theme) -> None:
    best = max(values)
    axes.axhline(best, color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.annotate(
        f"best val {best:.2f} %", (1, best), xycoords=axes.get_yaxis_transform(), xytext=(0, 6),
        textcoords="offset points", ha="right",
        bbox={"facecolor": theme.background, "linewidth": 0, "pad": 0},
    )  # fmt: skip
