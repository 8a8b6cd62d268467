"""ReCU's rectified clamp: standardised weights, of which those far from 0 get no gradient.

Far out, a weight hardly ever changes its sign. The clamp to ±Q makes such weights equal to Q, where
Q is the quantile tau of a Laplace distribution with their mean size.
"""

import math

from torch import Tensor

from kernels.transforms.transform import CHANNEL, Transform

TAU = (0.85, 0.99)  # tau at the start and at the end of training
EPS = 1e-5  # what is added to the variance


def schedule(progress: float) -> tuple[float]:
    """(tau,) at ``progress``, from 0.85 to 0.99 along exp(progress)."""
    begin, end = TAU
    return (begin + (end - begin) * math.expm1(progress) / math.expm1(1),)


def apply(w: Tensor, params: Tensor) -> Tensor:
    """u = 2 sqrt(2) (w - mean_c) / std_c, with the gradient of u clamped to ±Q.

    Q = -mean |u| ln(2 - 2 tau), taken as a constant. The clamp changes no sign, so u itself is
    returned.
    """
    centred = w - w.mean(CHANNEL, keepdim=True)
    u = centred / ((centred.var(CHANNEL, keepdim=True) + EPS).sqrt() / math.sqrt(8))
    q = -u.detach().abs().mean() * (2 - 2 * params[0]).log()
    clamped = u.clamp(-q, q)
    return clamped + (u - clamped).detach()


TRANSFORM = Transform(
    name="recu",
    source="Xu et al., ReCU, ICCV 2021 (arXiv:2103.12369); its learned scale of each channel is "
    "left to batch norm",
    parameters=("tau",),
    schedule=schedule,
    apply=apply,
)
