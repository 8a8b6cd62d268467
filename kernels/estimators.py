"""Gradient estimators: what stands in for the derivative of sign.

The forward pass is always sign(x). An estimator says which factor h(x) multiplies the gradient,
``dx = dy * h(x)``, and which surrogate f with f' = h (up to clipping) it thereby trains. To add
one, write its functions and an entry in ``ESTIMATORS``; kernels, models, indicators and the
config take it from there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels._triton import jit, tl

Factor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Estimator:
    """One gradient estimator.

    ``schedule(progress, **options)`` gives the values of ``parameters`` at ``progress`` =
    epoch / epochs in [0, 1]. They travel as one small tensor ``params`` on the device, so that
    a new value neither recompiles nor synchronises anything. ``factor(x, params)`` and
    ``surrogate(x, params)`` are elementwise on tensors of any shape; ``triton_factor(x, params)``
    is the same h on a block of fp32 values and a pointer to fp32 parameters. None of them needs to
    care about NaN: the ops do.
    """

    name: str
    source: str
    parameters: tuple[str, ...]
    schedule: Callable[..., tuple[float, ...]]
    factor: Factor
    triton_factor: Any
    surrogate: Factor
    options: Mapping[str, float] = field(default_factory=dict)


RESTE_THRESHOLD = 1.5  # t: no gradient beyond it
RESTE_LINEAR = 0.1  # m: below it the secant's slope, where the power's would be unbounded


def reste_schedule(progress: float, o_end: float = 3.0) -> tuple[float, float, float]:
    """(o, t, m) at ``progress``: o = 1 + (1 - cos(pi/2 progress)) (o_end - 1)."""
    if not o_end >= 1:
        raise ValueError(f"o_end is {o_end}; ReSTE's power 1/o needs o_end >= 1")
    o = 1 + (1 - math.cos(math.pi / 2 * progress)) * (o_end - 1)
    return o, RESTE_THRESHOLD, RESTE_LINEAR


def reste_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """m^(1/o) / m = m^((1-o)/o) where |x| <= m; (1/o) |x|^((1-o)/o) up to t; 0 beyond.

    The jump by a factor o at |x| = m is the official code's.
    """
    o, t, m = params.unbind()
    a = x.abs()
    # Products of masks: on a CPU torch.where takes ten times as long. The power is 1 at o = 1, and
    # at m it is the secant's slope times 1 / o.
    weight = (a <= t).to(x.dtype).add_((a <= m).to(x.dtype) * (o - 1)).div_(o)
    return torch.maximum(a, m).pow_((1 - o) / o).mul_(weight)


@jit
def reste_factor_triton(x, params):  # type: ignore[no-untyped-def]
    o = tl.load(params)
    t = tl.load(params + 1)
    m = tl.load(params + 2)
    a = tl.abs(x)
    power = tl.exp2(tl.log2(tl.maximum(a, m)) * ((1 - o) / o))
    return tl.where(a <= m, power, tl.where(a <= t, power / o, 0.0))


def reste_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """sign(x) |x|^(1/o)."""
    return x.sign() * x.abs().pow(1 / params[0])


def ste_schedule(progress: float) -> tuple[()]:
    """No parameters."""
    return ()


def ste_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """1 where |x| <= 1, else 0."""
    return (x.abs() <= 1).to(x.dtype)


@jit
def ste_factor_triton(x, params):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(x) <= 1, 1.0, 0.0)


def ste_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """x clipped to [-1, 1]."""
    return x.clamp(-1, 1)


ESTIMATORS = {
    estimator.name: estimator
    for estimator in (
        Estimator(
            name="reste",
            source="Wu et al., Estimator Meets Equilibrium Perspective, ICCV 2023",
            parameters=("o", "t", "m"),
            schedule=reste_schedule,
            factor=reste_factor,
            triton_factor=reste_factor_triton,
            surrogate=reste_surrogate,
            options={"o_end": 3.0},
        ),
        Estimator(
            name="ste",
            source="Courbariaux et al., BinaryNet, 2016 (arXiv:1602.02830)",
            parameters=(),
            schedule=ste_schedule,
            factor=ste_factor,
            triton_factor=ste_factor_triton,
            surrogate=ste_surrogate,
        ),
    )
}


def get_estimator(name: str) -> Estimator:
    """The estimator called ``name``; ``ValueError`` naming the known ones."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]
