"""The indicators of a training as heat maps: a row for each layer, a column for each epoch."""

import math
from typing import Any

from pipeline.report.runs import Record

COLOURS = "cividis"  # seen alike by people with and without colour blindness; dark is small
# Each figure of a record's indicators: its title, and whether its colours are logarithmic.
PANELS = {
    "weights": {
        "error": ("estimating error", True),
        "stability": ("var of |gradient|", True),
        "flipped": ("share of flipped signs", False),
        "outside": ("share without gradient", False),
    },
    "activations": {
        "error": ("error, root mean square", False),
        "positive": ("share of +1", False),
    },
}


def layers(epochs: list[Record], kind: str) -> list[str]:
    """The layers of ``kind``, "weights" or "activations", that have figures in every epoch."""
    return list(epochs[0]["indicators"][kind])


def values(epochs: list[Record], kind: str, name: str) -> list[list[float]]:
    """The figures ``name``: a row for each layer, with a value for each epoch."""
    tables = [epoch["indicators"][kind] for epoch in epochs]
    return [[table[layer][name] for table in tables] for layer in layers(epochs, kind)]


def height(epochs: list[Record]) -> float:
    """The height of the picture in inches."""
    return sum(1.0 + 0.13 * max(len(layers(epochs, kind)), 4) for kind in _kinds(epochs))


def draw(figure: Any, epochs: list[Record]) -> None:
    """Draw the indicators of ``epochs``, which all have some, into an empty matplotlib figure."""
    kinds = _kinds(epochs)
    heights = [max(len(layers(epochs, kind)), 4) + 7 for kind in kinds]
    for part, kind in zip(
        figure.subfigures(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0],
        kinds,
        strict=True,
    ):
        part.suptitle(kind, x=0.01, ha="left", weight="bold")
        panels = part.subplots(1, len(PANELS[kind]), sharey=True)
        for axes, (name, (title, is_log)) in zip(panels, PANELS[kind].items(), strict=True):
            axes.set_title(title)
            _map(part, axes, values(epochs, kind, name), is_log=is_log)
        panels[0].set_yticks(range(len(layers(epochs, kind))), layers(epochs, kind), fontsize=5.5)


def _kinds(epochs: list[Record]) -> list[str]:
    return [kind for kind in PANELS if layers(epochs, kind)]


def _map(figure: Any, axes: Any, rows: list[list[float]], *, is_log: bool) -> None:
    everything = sum(rows, [])
    scale = "log" if is_log and min(everything) > 0 and max(everything) < math.inf else "linear"
    # matplotlib would draw shares that are all 0 between -0.1 and 0.1.
    limits = {"vmin": 0, "vmax": 1} if not any(everything) else {}
    done = len(rows[0])
    image = axes.imshow(
        rows, cmap=COLOURS, norm=scale, **limits, aspect="auto", interpolation="nearest",
        extent=(0.5, done + 0.5, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_xlabel("epochs done")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
    bar = figure.colorbar(image, ax=axes, fraction=0.08, pad=0.03)
    bar.ax.tick_params(labelsize=6, which="both")
    bar.outline.set_visible(False)
