"""The colours of estimators: seen by everyone, on white and on black, and always the same."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from kernels import ESTIMATORS
from pipeline.report.palette import (
    COLOURS,
    DASHES,
    FURTHER,
    ON_OFF,
    UNKNOWN,
    colour_of,
    shades,
    styles,
)
from pipeline.report.pictures import DARK, LIGHT
from tests import ROOT

# How people with a lack of long, medium and short cones see linear RGB: Machado, Oliveira and
# Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = TO_XYZ.sum(1)


def linear(colour):
    """Linear RGB of "#rrggbb", IEC 61966-2-1."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB, in which distances are about those that people see: 2 is just visible."""
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb / WHITE, 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    """WCAG 2's contrast ratio, 1 to 21."""
    low, high = sorted((TO_XYZ @ linear(each))[1] for each in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart(vision):
    seen = [lab(np.clip(np.array(VISION[vision]) @ linear(c), 0, 1)) for c in COLOURS.values()]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 13


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out(theme):
    assert min(contrast(c, theme.background) for c in (*COLOURS.values(), *FURTHER)) > 2


def test_every_estimator_of_ours_has_its_own_colour():
    assert set(ESTIMATORS) <= set(COLOURS)
    every = [*COLOURS.values(), *FURTHER, UNKNOWN]
    assert len(every) == len(set(every))


def test_a_strangers_estimator_has_the_same_colour_in_every_process():
    names = ["mine", "größer", "\udcff", "x" * 999]
    assert {colour_of(name) for name in names} <= set(FURTHER) and colour_of("") == UNKNOWN
    code = (
        "from pipeline.report.palette import colour_of as c; print(c('mine'), c('gr\\xf6\\xdfer'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [colour_of(name) for name in names[:2]], done.stderr


def test_lines_of_one_estimator_differ_in_shade_and_dash():
    assert styles(["reste", "ste"]) == [(COLOURS["reste"], "solid"), (COLOURS["ste"], "solid")]
    several = styles(["reste", "ste", "reste", "reste"])
    assert several[1] == (COLOURS["ste"], "solid") and several[2][0] == COLOURS["reste"]
    dark, middle, light = (several[i][0] for i in (0, 2, 3))
    assert (
        contrast(dark, "#ffffff") > contrast(middle, "#ffffff") > contrast(light, "#ffffff") > 1.5
    )
    assert len({dash for _, dash in styles(["ste"] * 4)}) == 4
    assert len(set(styles(["ste"] * 200))) > 60


def test_shades_lie_around_the_colour():
    assert shades("#808080", 1) == ["#808080"]
    assert len(set(shades("#0072b2", 9))) == 9 and shades("#0072b2", 9)[4] == "#0072b2"
    assert set(ON_OFF) == set(DASHES)
