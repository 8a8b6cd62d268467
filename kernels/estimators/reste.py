"""ReSTE: the derivative of sign(x) |x|^(1/o), whose power o grows during the training."""

import math

import torch

from kernels._triton import exp2, jit, log2, tl
from kernels.estimators.estimator import Estimator, Option

THRESHOLD = 1.5  # t: there is no gradient beyond it
LINEAR = 0.1  # m: below it h is the slope of a secant, since the power would be unbounded
O_END = Option(3.0, 1, 1e6, "the power o at the end of training")


def schedule(progress: float, o_end: float = O_END.default) -> tuple[float, float, float]:
    """(o, t, m) at ``progress``: o = 1 + (1 - cos(pi/2 progress)) (o_end - 1)."""
    O_END.check("o_end", o_end)
    o = 1 + (1 - math.cos(math.pi / 2 * progress)) * (o_end - 1)
    return o, THRESHOLD, LINEAR


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """m^(1/o) / m = m^((1-o)/o) where |x| <= m; (1/o) |x|^((1-o)/o) up to t; 0 beyond.

    The jump by a factor o at |x| = m is the official code's.
    """
    o, t, m = params.unbind()
    a = x.abs()
    # Masks are compared in place and multiplied: on a CPU, torch.where and masks of bools take
    # many times as long. The power is 1 at o = 1, and at m it is the secant's slope times 1 / o.
    weight = a.clone().le_(m).mul_(o - 1).add_(a.clone().le_(t)).div_(o)
    # exp2(k log2 a) = a^k takes half the time of pow. The clamp keeps infinity out, because 0
    # times the logarithm of infinity is NaN.
    return a.clamp_(m, t).log2_().mul_((1 - o) / o).exp2_().mul_(weight)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    o = tl.load(params)
    t = tl.load(params + 1)
    m = tl.load(params + 2)
    a, share = tl.abs(x), 1 / o
    # A gradient needs no more than the short instructions give: see kernels._triton.
    power = exp2(log2(tl.maximum(a, m)) * ((1 - o) * share))
    return power * tl.where(a <= m, 1.0, tl.where(a <= t, share, 0.0))


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """sign(x) |x|^(1/o)."""
    return x.sign() * x.abs().pow(1 / params[0])


NATIVE_FACTOR = """
    const float o = params[0], t = params[1], m = params[2], power = (1 - o) / o, share = 1 / o;
    return [=](float x) {
      const float a = absolute(x), h = bounded_exp2(log2(least(greatest(a, m), t)) * power);
      const float within = a <= m ? h : h * share;
      return a <= t ? within : 0.0f;
    };
"""

ESTIMATOR = Estimator(
    name="reste",
    source="Wu et al., Estimator Meets Equilibrium Perspective, ICCV 2023",
    parameters=("o", "t", "m"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"o_end": O_END},
)
