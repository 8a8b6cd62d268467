"""RBNN: the derivative of two parabolas that grow steeper, with a schedule for activations."""

import math

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator

SQRT2 = math.sqrt(2)


def schedule(progress: float) -> tuple[float, float]:
    """(t, k) of weights at ``progress``: t = 10^(-2 + 3 progress), k = max(1 / t, 1)."""
    t = 10 ** (-2 + 3 * progress)
    return t, max(1 / t, 1.0)


def activation_schedule(progress: float) -> tuple[float, float]:
    """(t, k) of activations at ``progress``: t as the weights', but at least 1, and k = 1."""
    return max(schedule(progress)[0], 1.0), 1.0


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k max(0, sqrt(2) t - t^2 |x|)."""
    t, k = params.unbind()
    return x.abs().mul_(-t).add_(SQRT2).clamp_(min=0).mul_(k * t)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    t = tl.load(params)
    k = tl.load(params + 1)
    return k * t * tl.maximum(1.4142135623730951 - t * tl.abs(x), 0.0)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k (sqrt(2) t x - sign(x) t^2 x^2 / 2) where |t x| <= sqrt(2), k sign(x) beyond."""
    t, k = params.unbind()
    u = (t * x).clamp(-SQRT2, SQRT2)
    return k * u * (SQRT2 - u.abs() / 2)


NATIVE_FACTOR = """
    const float t = params[0], peak = params[0] * params[1];
    return [=](float x) { return peak * greatest(1.41421356f - t * absolute(x), 0.0f); };
"""

ESTIMATOR = Estimator(
    name="rbnn",
    source="Lin et al., Rotated Binary Neural Network, NeurIPS 2020 (arXiv:2009.13055)",
    parameters=("t", "k"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    activation_schedule=activation_schedule,
)
