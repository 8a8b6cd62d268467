"""EDE of IR-Net: the derivative of k tanh(t x), which grows steeper during the training."""

import torch

from kernels._triton import jit, tl
from kernels.estimators._sech2 import sech2, triton_sech2
from kernels.estimators.estimator import Estimator, Option

T_END = 10.0
T_MIN = Option(
    1e-3,
    1e-6,
    T_END,
    "the slope t at the start of training; the paper's is 0.001 for resnet20 in 1w1a, 0.1 in "
    "1w32a and for vgg_small",
)


def schedule(progress: float, ede_t_min: float = T_MIN.default) -> tuple[float, float]:
    """(t, k) at ``progress``: t = t_min (10 / t_min)^progress, k = max(1 / t, 1)."""
    T_MIN.check("ede_t_min", ede_t_min)
    t = ede_t_min * (T_END / ede_t_min) ** progress
    return t, max(1 / t, 1.0)


def factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k t (1 - tanh^2(t x))."""
    t, k = params.unbind()
    return sech2(x * t).mul_(k * t)


@jit
def triton_factor(x, params):  # type: ignore[no-untyped-def]
    t = tl.load(params)
    k = tl.load(params + 1)
    return k * t * triton_sech2(t * x)


def surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k tanh(t x)."""
    t, k = params.unbind()
    return k * (t * x).tanh()


NATIVE_FACTOR = """
    const float t = params[0], peak = params[0] * params[1];
    return [=](float x) { return peak * sech2(t * x); };
"""

ESTIMATOR = Estimator(
    name="ede",
    source="Qin et al., IR-Net, CVPR 2020 (arXiv:1909.10788)",
    parameters=("t", "k"),
    schedule=schedule,
    factor=factor,
    triton_factor=triton_factor,
    native_factor=NATIVE_FACTOR,
    surrogate=surrogate,
    options={"ede_t_min": T_MIN},
)
