"""The curves of an estimator over the training: its surrogate f, and its factor h = f'.

They come from the functions that trainings use, in float64, with the parameters of weights.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from kernels import get_estimator

REACH = 2.0  # they go from -REACH to REACH
POINTS = 2000  # an even number leaves out 0, where f may be steeper than can be drawn
PROGRESS = {"start": 0.0, "middle": 0.5, "end": 1.0}  # of the training


class Curve(NamedTuple):
    """The values of f and h at ``x``, all of the same length."""

    x: list[float]
    f: list[float]
    h: list[float]


def curves_of(estimator: str, options: Mapping[str, float]) -> dict[str, Curve]:
    """The curves at each of ``PROGRESS``; of an estimator that never changes, at the end alone."""
    schedule = get_estimator(estimator).schedule
    params = {moment: schedule(progress, **options) for moment, progress in PROGRESS.items()}
    if len(set(params.values())) == 1:
        params = {"end": params["end"]}
    return {moment: _curve(estimator, values) for moment, values in params.items()}


def _curve(estimator: str, values: tuple[float, ...]) -> Curve:
    entry = get_estimator(estimator)
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    params = torch.tensor(values, dtype=torch.float64)
    f, h = entry.surrogate(x, params), entry.factor(x, params)
    return Curve(x.tolist(), f.tolist(), h.double().tolist())
