"""What all pictures by matplotlib have in common: their colours, their type, and the PNG file."""

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

FEW_EPOCHS = 30  # up to here every epoch gets a dot
WIDTH = 8.4  # inches: as wide as a README


class Theme(NamedTuple):
    """The colours around the lines of a picture: its background, its words, its grid; and that of
    what stands beside the lines that matter, such as a loss in training."""

    background: str
    text: str
    grid: str
    aside: str


LIGHT = Theme("#ffffff", "#24292f", "#e4e8ec", "#8c959f")
DARK = Theme("#0d1117", "#d1d7e0", "#2a313c", "#8b949e")


def png(draw: Callable[[Any], None], height: float, theme: Theme = LIGHT) -> bytes:
    """A PNG file of what ``draw`` draws into an empty figure, ``WIDTH`` by ``height`` inches.

    Raises ImportError where matplotlib is not installed. No display is needed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(_style(theme)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; it becomes a box
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def marker(epochs: int) -> str:
    """How a line over so many epochs marks each of them."""
    return "." * (epochs <= FEW_EPOCHS)


def over_epochs(axes: Any) -> None:
    """Let ``axes``, in which all is drawn, say that they count epochs."""
    axes.set_xlabel("epochs done")
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch
        axes.set_xlim(round(low) - 1, round(high) + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)


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
