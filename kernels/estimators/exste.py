"""ExSTE: the derivative of an exponential that levels off, and does so sooner as o grows."""

import math

import torch

from kernels._triton import jit, tl
from kernels.estimators.estimator import Estimator, Option

THRESHOLD = 1.5  # t: there is no gradient beyond it
O_BEGIN = 0.01  # o at the start of training
O_END = Option(6.3096, O_BEGIN, 1e6, "the o at the end of training; the paper's is 10^0.8")


def schedule(progress: float, exste_o_end: float = O_END.default) -> tuple[float, float, float]:
    """(o, k, t) at ``progress``: o = 0.01 (o_end / 0.01)^progress, k = o / (1 - exp(-o))."""
    O_END.check("exste_o_end", exste_o_end)
    o = O_BEGIN * (exste_o_end / O_BEGIN) ** progress
    return o, -o / math.expm1(-o), THRESHOLD


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k exp(-o |x|) where |x| <= t, else 0."""
    o, k, t = params.unbind()
    a = x.abs()
    inside = a.clone().le_(t)
    return a.mul_(-o).exp_().mul_(inside).mul_(k)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    o = tl.load(params)
    k = tl.load(params + 1)
    t = tl.load(params + 2)
    a = tl.abs(x)
    return tl.where(a <= t, k * tl.exp(-o * a), 0.0)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """sign(x) (1 - exp(-o |x|)) / (1 - exp(-o)) on [-t, t], constant beyond."""
    o, k, t = params.unbind()
    return x.sign() * (x.abs().minimum(t) * -o).expm1_() * (-k / o)


NATIVE_FACTOR = """
    const float o = params[0], k = params[1], t = params[2];
    return [=](float x) {
      const float a = absolute(x);
      return a <= t ? k * exp(-o * a) : 0.0f;
    };
"""

ESTIMATOR = Estimator(
    name="exste",
    source="the draft of BEANet, unreviewed",
    parameters=("o", "k", "t"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"exste_o_end": O_END},
)
