"""The tests, in the same rooms as what they test."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900  # seconds that a test waits for a process: its machine may have other work, too


def first_quick(*values):
    """Parameters of a test, of which all but the first are slow."""
    return [values[0], *(pytest.param(each, marks=pytest.mark.slow) for each in values[1:])]


def quick_where(is_quick, *values):
    """Parameters of a test, slow but for those that ``is_quick`` takes."""
    return [
        each if is_quick(each) else pytest.param(each, marks=pytest.mark.slow) for each in values
    ]
