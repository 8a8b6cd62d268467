"""The pictures of a training, drawn by matplotlib where that is installed."""

import io
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.report import heatmaps
from pipeline.report.runs import Record, Run, read_run
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.files import write_atomically

FEW_EPOCHS = 30  # up to here every epoch gets a dot
TITLES = {"loss": "cross-entropy (nats)", "top1": "top-1 (%)"}
OTHER_NUMBERS = ("epoch", "lr", "images_per_second", "data_wait", "seconds")


class Theme(NamedTuple):
    """The colours of a picture: its background, its words, its grid, and its lines."""

    background: str
    text: str
    grid: str
    train: str
    val: str
    parameters: tuple[str, ...]


LIGHT = Theme("#ffffff", "#24292f", "#e4e8ec", "#8c959f", "#0969da", ("#bc4c00", "#8250df"))
DARK = Theme("#0d1117", "#d1d7e0", "#2a313c", "#8b949e", "#58a6ff", ("#f0883e", "#bc8cff"))


def draw_run(folder: Path) -> Path | None:
    """Draw the run in ``folder`` to its ``plots/training.png``, and to ``plots/indicators.png`` if
    it has some; the first path, or None if that fails.

    Whatever fails is one warning: a picture is no reason to end a run.
    """
    path = folder / "plots" / "training.png"
    try:
        run = read_run(folder)
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
    """A PNG file of metrics and the estimator's changing parameters over the epochs.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the run has not finished an epoch.
    """
    if not run.epochs:
        raise ValueError(f"{run.name} has not finished an epoch")
    return _png(lambda figure: _draw(figure, run, theme), (8.4, 2.9), theme)


def indicators(run: Run, theme: Theme = LIGHT) -> bytes:
    """A PNG file of the indicators of each layer over the epochs that have some, see ``watched``.

    Raises ImportError where matplotlib is not installed.
    """
    epochs = watched(run)
    return _png(lambda figure: heatmaps.draw(figure, epochs), heatmaps.size(epochs), theme)


def watched(run: Run) -> list[Record]:
    """The records of the epochs that hold indicators by layer, such as this version writes."""
    return [epoch for epoch in run.epochs if "total" in epoch.get("indicators", ())]


def _png(draw: Callable[[Any], None], size: tuple[float, float], theme: Theme) -> bytes:
    """A PNG file of what ``draw`` draws into a figure of ``size`` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(_style(theme)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


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
    names, parameters = metrics(run.epochs), changing_parameters(run.epochs)
    widths = [1.0] * len(names) + [0.6] * bool(parameters)
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    figure.suptitle(run.name, x=0.01, ha="left", weight="bold")
    for axes, name in zip(panels, names, strict=False):
        _draw_metric(axes, name, run.epochs, theme)
    panels[0].legend(loc="upper right")
    if parameters:
        _draw_parameters(panels[-1], parameters, theme)
    for axes in panels:
        axes.set_xlabel("epochs done")
        axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_metric(axes: Any, name: str, epochs: list[Record], theme: Theme) -> None:
    axes.set_title(TITLES.get(name, name))
    for split, colour in (("train", theme.train), ("val", theme.val)):
        _line(axes, [epoch[f"{split}_{name}"] for epoch in epochs], colour, split)
    if name == "top1":
        _mark_best(axes, epochs, theme)


def _draw_parameters(axes: Any, parameters: dict[str, list[float]], theme: Theme) -> None:
    axes.set_title(f"estimator: {', '.join(parameters)}")
    for (name, values), colour in zip(parameters.items(), cycle(theme.parameters), strict=False):
        _line(axes, values, colour, name)
    everything = sum(parameters.values(), [])
    if min(everything) > 0 and max(everything) > 100 * min(everything):
        axes.set_yscale("log")
        axes.minorticks_off()
    if len(parameters) > 1:
        axes.legend()


def _line(axes: Any, values: list[float], colour: str, label: str) -> None:
    done = range(1, len(values) + 1)
    axes.plot(done, values, color=colour, marker="." * (len(values) <= FEW_EPOCHS), label=label)


def _mark_best(axes: Any, epochs: list[Record], theme: Theme) -> None:
    best = max(epochs, key=lambda epoch: epoch["val_top1"])
    axes.axhline(best["val_top1"], color=theme.val, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.annotate(
        f"best val {best['val_top1']:.2f} %", (1, best["val_top1"]),
        xycoords=axes.get_yaxis_transform(), xytext=(0, 6), textcoords="offset points",
        ha="right", color=theme.val, bbox={"facecolor": theme.background, "linewidth": 0, "pad": 0},
    )  # fmt: skip


def _style(theme: Theme) -> Any:
    return {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.grid,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.ymargin": 0.1,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.labelsize": 9,
        "axes.labelcolor": theme.text,
        "figure.titlesize": 11,
        "font.size": 9,
        "grid.color": theme.grid,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "lines.markersize": 7,
        "text.color": theme.text,
        "text.usetex": False,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
    }
