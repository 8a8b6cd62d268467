"""FDA: the derivative of a square wave's Fourier series, to which the training adds terms."""

import math

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator, Option

N = (9, 18)  # n in the first and in the last tenth of the training
W = Option(1.0, 1e-6, 1e6, "the frequency w")


def schedule(progress: float, fda_w: float = W.default) -> tuple[float, float]:
    """(w, n) at ``progress``: w is constant; n grows by one in every tenth of the training."""
    W.check("fda_w", fda_w)
    return fda_w, float(min(N[0] + int(10 * progress), N[1]))


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """(4 w / pi) sum_{i=0..n} cos((2i + 1) w x); NaN at infinity, where a cosine has no value.

    The sum is sin(2 (n + 1) z) / (2 sin(z)) at z = w x. It changes its sign with each multiple of
    pi that z loses, and is n + 1 where z then is 0.
    """
    w, n = params.unbind()
    z = x * w
    turns = (z / math.pi).round_()
    # pi is subtracted in two parts, because turns times the first of them is exact.
    z = z.sub_(turns, alpha=3.140625).sub_(turns, alpha=math.pi - 3.140625).abs_().clamp_(min=1e-30)
    total = (z * (2 * n + 2)).sin_().div_(z.sin_())
    return total.mul_(turns.remainder_(2).mul_(-2).add_(1)).mul_(2 * w / math.pi)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    """By cos((2i + 3) z) = cos((2i + 1) z) - 4 sin^2(z) sum_{j=0..i} cos((2j + 1) z)."""
    w = tl.load(params)
    n = tl.load(params + 1).to(tl.int32)
    coefficient = 2 * tl.sin(w * x)
    coefficient *= coefficient
    term = tl.cos(w * x)
    total = term
    for _ in range(n):
        term -= coefficient * total
        total += term
    return 1.2732395447351628 * w * total


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """(4 / pi) sum_{i=0..n} sin((2i + 1) w x) / (2i + 1): the Fourier series of a square wave."""
    w, n = params.unbind()
    z, total = w * x, torch.zeros_like(x)
    for i in range(N[1] + 1):
        total += (i <= n) * ((2 * i + 1) * z).sin() / (2 * i + 1)
    return 4 / math.pi * total


NATIVE_FACTOR = """
    const float w = params[0], twice = 2 * (params[1] + 1), peak = w * 0.636619772f;
    return [=](float x) {
      float turns;
      const float z = greatest(absolute(without_turns(w * x, turns)), 1e-30f);
      return parity(turns) * peak * sin(twice * z) / sin(z);
    };
"""

ESTIMATOR = Estimator(
    name="fda",
    source="Xu et al., Learning Frequency Domain Approximation for Binary Neural Networks, "
    "NeurIPS 2021 (arXiv:2103.00841)",
    parameters=("w", "n"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"fda_w": W},
)
