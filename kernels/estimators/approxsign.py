"""ApproxSign of Bi-Real Net: the derivative of two parabolas that meet at 0."""

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator


def schedule(progress: float) -> tuple[()]:
    """There are no parameters."""
    return ()


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """max(0, 2 - 2 |x|)."""
    return x.abs().mul_(-2).add_(2).clamp_(min=0)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    return tl.maximum(2 - 2 * tl.abs(x), 0.0)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """x (2 - |x|) on [-1, 1], the sign beyond."""
    x = x.clamp(-1, 1)
    return x * (2 - x.abs())


NATIVE_FACTOR = """
    return [](float x) { return greatest(2 - 2 * absolute(x), 0.0f); };
"""

ESTIMATOR = Estimator(
    name="approxsign",
    source="Liu et al., Bi-Real Net, ECCV 2018 (arXiv:1808.00278)",
    parameters=(),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
)
