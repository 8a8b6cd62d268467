"""DSQ: the derivative of a tanh that reaches -1 and +1 at the ends of [-1, 1]."""

import math

import torch

from kernels._triton import jit, tl
from kernels.estimators._sech2 import sech2, triton_sech2
from kernels.estimators.estimator import Estimator, Option

A = Option(0.2, 1e-6, 1 - 1e-6, "the constant a; the paper learns it")


def schedule(progress: float, dsq_a: float = A.default) -> tuple[float, float]:
    """(k, s), constant: k = ln(2 / a - 1), s = 1 / (1 - a). The paper learns a."""
    A.check("dsq_a", dsq_a)
    return math.log(2 / dsq_a - 1), 1 / (1 - dsq_a)


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """s (k / 2) (1 - tanh^2(k x / 2)) where |x| <= 1, else 0."""
    k, s = params.unbind()
    inside = x.abs().le_(1)
    return sech2(x * (k / 2)).mul_(inside).mul_(s * k / 2)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    k = tl.load(params)
    s = tl.load(params + 1)
    return tl.where(tl.abs(x) <= 1, s * k / 2 * triton_sech2(k / 2 * x), 0.0)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """s tanh(k x / 2) on [-1, 1], the sign beyond."""
    k, s = params.unbind()
    return s * (k / 2 * x.clamp(-1, 1)).tanh()


NATIVE_FACTOR = """
    const float half = params[0] / 2, peak = params[1] * half;
    return [=](float x) { return absolute(x) <= 1 ? peak * sech2(half * x) : 0.0f; };
"""

ESTIMATOR = Estimator(
    name="dsq",
    source="Gong et al., Differentiable Soft Quantization, ICCV 2019 (arXiv:1908.05033)",
    parameters=("k", "s"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"dsq_a": A},
)
