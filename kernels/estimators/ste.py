"""The straight-through estimator: the derivative of the identity, clipped to [-1, 1]."""

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator


def schedule(progress: float) -> tuple[()]:
    """There are no parameters."""
    return ()


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """1 where |x| <= 1, else 0."""
    return x.abs().le_(1)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(x) <= 1, 1.0, 0.0)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """x clipped to [-1, 1]."""
    return x.clamp(-1, 1)


NATIVE_FACTOR = """
    return [](float x) { return absolute(x) <= 1 ? 1.0f : 0.0f; };
"""

ESTIMATOR = Estimator(
    name="ste",
    source="Courbariaux et al., BinaryNet, 2016 (arXiv:1602.02830)",
    parameters=(),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
)
