"""SwishSign of BNN+: the derivative of a swish-shaped sign, which overshoots before it levels."""

import torch

from kernels._triton import jit, tl
from kernels.estimators._sech2 import sech2, triton_sech2
from kernels.estimators.estimator import Estimator, Option

FAR = 350.0  # |b x / 2| is cut here, where h is 0 in fp32: infinity times 0 would be NaN
B = Option(5.0, 1e-6, 1e6, "the steepness b")


def schedule(progress: float, swishsign_b: float = B.default) -> tuple[float]:
    """(b,), constant."""
    B.check("swishsign_b", swishsign_b)
    return (swishsign_b,)


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)) = b (1 - z tanh(z)) / cosh^2(z), z = b x / 2."""
    (b,) = params.unbind()
    z = (x * (b / 2)).clamp_(-FAR, FAR)
    return z.tanh().mul_(z).sub_(1).mul_(sech2(z)).mul_(-b)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    b = tl.load(params)
    z = tl.minimum(tl.abs(b / 2 * x), 350.0)
    q = tl.exp(-2 * z)
    return b * (1 - z * (1 - q) / (1 + q)) * triton_sech2(z)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """2 s (1 + b x (1 - s)) - 1 with s = sigmoid(b x); = tanh(z) + z / cosh^2(z), z = b x / 2."""
    z = (x * (params[0] / 2)).clamp(-FAR, FAR)
    return z.tanh() + z * sech2(z)


NATIVE_FACTOR = """
    const float b = params[0], half = b / 2;
    return [=](float x) { return b * (1 - x_tanh(half * x)) * sech2(half * x); };
"""

ESTIMATOR = Estimator(
    name="swishsign",
    source="Darabi et al., BNN+, 2018 (arXiv:1812.11800)",
    parameters=("b",),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"swishsign_b": B},
)
