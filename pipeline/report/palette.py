"""The colours of estimators: the same one for the same estimator in every picture and page.

They are told apart with and without colour blindness, on white and on black. Estimators of
strangers have a colour too, the same one in every process, but two of them may share it: beside a
colour, a line has a dash.
"""

import zlib
from collections.abc import Sequence
from itertools import cycle

COLOURS = {
    "reste": "#0072b2",
    "ste": "#d55e00",
    "approxsign": "#009e73",
    "ede": "#cc79a7",
    "rbnn": "#e69f00",
    "swishsign": "#56b4e9",
    "dsq": "#882255",
    "fda": "#999933",
    "biper": "#aa44ff",
    "exste": "#664422",
}
FURTHER = ("#117733", "#aa4499", "#cc6677", "#6666cc")
UNKNOWN = "#57606a"  # where nobody says which estimator it was
# The dashes of lines that share a colour, by plotly's names; matplotlib's are in ``ON_OFF``.
DASHES = ("solid", "dash", "dashdot", "dot")
ON_OFF = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5))}


def colour_of(estimator: str) -> str:
    """The colour of an estimator by its name, as "#rrggbb"."""
    if not estimator:
        return UNKNOWN
    number = zlib.crc32(estimator.encode("utf-8", "replace"))
    return COLOURS.get(estimator) or FURTHER[number % len(FURTHER)]


def shades(colour: str, count: int) -> list[str]:
    """``count`` shades of ``colour``, from dark to light; a single one is the colour itself."""
    places = [2 * (i + 1) / (count + 1) - 1 for i in range(count)]
    return [_shade(colour, place) for place in places]


def _shade(colour: str, place: float) -> str:
    """``colour``, mixed with black down to ``place`` -1, and with white up to 1."""
    goal = 255 if place > 0 else 0
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + 0.7 * abs(place) * (goal - c)):02x}" for c in channels)


def styles(estimators: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and dash of each line, whose estimators these are: lines of the same estimator differ
    in shade and dash."""
    colours = [colour_of(name) for name in estimators]
    ladders = {colour: iter(shades(colour, colours.count(colour))) for colour in colours}
    dashes = {colour: cycle(DASHES) for colour in colours}
    return [(next(ladders[colour]), next(dashes[colour])) for colour in colours]
