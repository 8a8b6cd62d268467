"""BiPer: a weight is the sign of a wave, sign(sin(w0 x)), and has the gradient of that wave.

The paper trains in two stages. Its first is a 32w1a network of this estimator, whose real weights
are the wave itself, sin(w0 x); its second is a 1w1a network that starts from it.
"""

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator, Option

W0 = Option(20.0, 1e-6, 1e6, "the frequency w0 of the weights' wave")


def schedule(progress: float, biper_w0: float = W0.default) -> tuple[float]:
    """(w0,), constant."""
    W0.check("biper_w0", biper_w0)
    return (biper_w0,)


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """w0 cos(w0 x); NaN at infinity, where a cosine has no value."""
    return (x * params).cos_().mul_(params)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    w0 = tl.load(params)
    return w0 * tl.cos(w0 * x)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """sin(w0 x)."""
    return (x * params).sin_()


@jit
def triton_surrogate(x, params):  # type: ignore[no-untyped-def]
    return tl.sin(tl.load(params) * x)


NATIVE_FACTOR = """
    const float w = params[0];
    return [=](float x) { return w * cos(w * x); };
"""

ESTIMATOR = Estimator(
    name="biper",
    source="Vargas et al., BiPer, CVPR 2024 (arXiv:2404.01278)",
    parameters=("w0",),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"biper_w0": W0},
    activations="approxsign",
    triton_surrogate=triton_surrogate,
)
