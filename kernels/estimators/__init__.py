"""Gradient estimators: what stands in for the derivative of sign.

The forward pass is always sign(x). An estimator says which factor h(x) multiplies the gradient,
``dx = dy * h(x)``, and which surrogate f with f' = h (up to clipping) it thereby trains. To add
one, write its functions and an entry in ``ESTIMATORS``; kernels, models, indicators and the
config take it from there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels._triton import jit, tl

Factor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Option:
    """A number that the user chooses for an estimator: the config key ``estimator.<name>``."""

    default: float
    low: float  # the smallest value allowed
    high: float  # the largest value allowed
    meaning: str


@dataclass(frozen=True)
class Estimator:
    """One gradient estimator.

    ``schedule(progress, **options)`` gives the values of ``parameters`` at ``progress`` =
    epoch / epochs in [0, 1]; ``activation_schedule`` gives those of activations where they differ
    from the weights'. They travel as one small tensor ``params`` on the device, so that a new
    value neither recompiles nor synchronises anything. ``factor(x, params)`` and
    ``surrogate(x, params)`` are elementwise on tensors of any shape; ``triton_factor(x, params)``
    is the same h on a block of fp32 values and a pointer to fp32 parameters. None of them needs to
    care about NaN: the ops do. ``options`` are config keys with their defaults.
    """

    name: str
    source: str
    parameters: tuple[str, ...]
    schedule: Callable[..., tuple[float, ...]]
    factor: Factor
    triton_factor: Any
    surrogate: Factor
    options: Mapping[str, Option] = field(default_factory=dict)
    activation_schedule: Callable[..., tuple[float, ...]] | None = None


RESTE_THRESHOLD = 1.5  # t: no gradient beyond it
RESTE_LINEAR = 0.1  # m: below it the secant's slope, where the power's would be unbounded


def reste_schedule(progress: float, o_end: float = 3.0) -> tuple[float, float, float]:
    """(o, t, m) at ``progress``: o = 1 + (1 - cos(pi/2 progress)) (o_end - 1)."""
    if not o_end >= 1:
        raise ValueError(f"o_end is {o_end}; ReSTE's power 1/o needs o_end >= 1")
    o = 1 + (1 - math.cos(math.pi / 2 * progress)) * (o_end - 1)
    return o, RESTE_THRESHOLD, RESTE_LINEAR


def reste_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """m^(1/o) / m = m^((1-o)/o) where |x| <= m; (1/o) |x|^((1-o)/o) up to t; 0 beyond.

    The jump by a factor o at |x| = m is the official code's.
    """
    o, t, m = params.unbind()
    a = x.abs()
    # Products of masks, compared in place: on a CPU torch.where and masks of bools take many times
    # as long. The power is 1 at o = 1, and at m it is the secant's slope times 1 / o.
    weight = a.clone().le_(m).mul_(o - 1).add_(a.clone().le_(t)).div_(o)
    # exp2(k log2 a) = a^k in half the time of pow. Not beyond t: 0 times the log of inf is NaN.
    return a.clamp_(m, t).log2_().mul_((1 - o) / o).exp2_().mul_(weight)


@jit
def reste_factor_triton(x, params):  # type: ignore[no-untyped-def]
    o = tl.load(params)
    t = tl.load(params + 1)
    m = tl.load(params + 2)
    a = tl.abs(x)
    power = tl.exp2(tl.log2(tl.maximum(a, m)) * ((1 - o) / o))
    return tl.where(a <= m, power, tl.where(a <= t, power / o, 0.0))


def reste_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """sign(x) |x|^(1/o)."""
    return x.sign() * x.abs().pow(1 / params[0])


def no_schedule(progress: float) -> tuple[()]:
    """No parameters."""
    return ()


def ste_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """1 where |x| <= 1, else 0."""
    return x.abs().le_(1)


@jit
def ste_factor_triton(x, params):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(x) <= 1, 1.0, 0.0)


def ste_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """x clipped to [-1, 1]."""
    return x.clamp(-1, 1)


def approxsign_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """max(0, 2 - 2 |x|)."""
    return x.abs().mul_(-2).add_(2).clamp_(min=0)


@jit
def approxsign_factor_triton(x, params):  # type: ignore[no-untyped-def]
    return tl.maximum(2 - 2 * tl.abs(x), 0.0)


def approxsign_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """x (2 - |x|) on [-1, 1], the sign beyond."""
    x = x.clamp(-1, 1)
    return x * (2 - x.abs())


def _sech2(x: torch.Tensor) -> torch.Tensor:
    """1 - tanh^2(x), from q = exp(-2 |x|): nothing cancels, nothing overflows, cosh is slower."""
    q = x.abs().mul_(-2).exp_()
    return (4 * q).div_((1 + q).square_())


@jit
def _sech2_triton(x):  # type: ignore[no-untyped-def]
    q = tl.exp(-2 * tl.abs(x))
    return 4 * q / ((1 + q) * (1 + q))


EDE_T_END = 10.0


def ede_schedule(progress: float, ede_t_min: float = 1e-3) -> tuple[float, float]:
    """(t, k) at ``progress``: t = t_min (10 / t_min)^progress, k = max(1 / t, 1)."""
    if not 0 < ede_t_min <= EDE_T_END:
        raise ValueError(f"ede_t_min is {ede_t_min}; it must be above 0 and at most {EDE_T_END:g}")
    t = ede_t_min * (EDE_T_END / ede_t_min) ** progress
    return t, max(1 / t, 1.0)


def ede_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k t (1 - tanh^2(t x))."""
    t, k = params.unbind()
    return _sech2(x * t).mul_(k * t)


@jit
def ede_factor_triton(x, params):  # type: ignore[no-untyped-def]
    t = tl.load(params)
    k = tl.load(params + 1)
    return k * t * _sech2_triton(t * x)


def ede_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k tanh(t x)."""
    t, k = params.unbind()
    return k * (t * x).tanh()


SQRT2 = math.sqrt(2)


def rbnn_schedule(progress: float) -> tuple[float, float]:
    """(t, k) of weights at ``progress``: t = 10^(-2 + 3 progress), k = max(1 / t, 1)."""
    t = 10 ** (-2 + 3 * progress)
    return t, max(1 / t, 1.0)


def rbnn_activation_schedule(progress: float) -> tuple[float, float]:
    """(t, k) of activations at ``progress``: t as the weights', but at least 1, and k = 1."""
    return max(rbnn_schedule(progress)[0], 1.0), 1.0


def rbnn_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k max(0, sqrt(2) t - t^2 |x|)."""
    t, k = params.unbind()
    return x.abs().mul_(-t).add_(SQRT2).clamp_(min=0).mul_(k * t)


@jit
def rbnn_factor_triton(x, params):  # type: ignore[no-untyped-def]
    t = tl.load(params)
    k = tl.load(params + 1)
    return k * t * tl.maximum(1.4142135623730951 - t * tl.abs(x), 0.0)


def rbnn_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """k (sqrt(2) t x - sign(x) t^2 x^2 / 2) where |t x| <= sqrt(2), k sign(x) beyond."""
    t, k = params.unbind()
    u = (t * x).clamp(-SQRT2, SQRT2)
    return k * u * (SQRT2 - u.abs() / 2)


SWISHSIGN_FAR = 350.0  # |b x / 2| is cut here, where h is 0 in fp32: infinity times 0 would be NaN


def swishsign_schedule(progress: float, swishsign_b: float = 5.0) -> tuple[float]:
    """(b,), constant."""
    if not swishsign_b > 0:
        raise ValueError(f"swishsign_b is {swishsign_b}; it must be above 0")
    return (swishsign_b,)


def swishsign_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)) = b (1 - z tanh(z)) / cosh^2(z), z = b x / 2."""
    (b,) = params.unbind()
    z = (x * (b / 2)).clamp_(-SWISHSIGN_FAR, SWISHSIGN_FAR)
    return z.tanh().mul_(z).sub_(1).mul_(_sech2(z)).mul_(-b)


@jit
def swishsign_factor_triton(x, params):  # type: ignore[no-untyped-def]
    b = tl.load(params)
    z = tl.minimum(tl.abs(b / 2 * x), 350.0)
    q = tl.exp(-2 * z)
    return b * (1 - z * (1 - q) / (1 + q)) * _sech2_triton(z)


def swishsign_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """2 s (1 + b x (1 - s)) - 1 with s = sigmoid(b x); = tanh(z) + z / cosh^2(z), z = b x / 2."""
    z = (x * (params[0] / 2)).clamp(-SWISHSIGN_FAR, SWISHSIGN_FAR)
    return z.tanh() + z * _sech2(z)


def dsq_schedule(progress: float, dsq_a: float = 0.2) -> tuple[float, float]:
    """(k, s), constant: k = ln(2 / a - 1), s = 1 / (1 - a). The paper learns a."""
    if not 0 < dsq_a < 1:
        raise ValueError(f"dsq_a is {dsq_a}; it must lie between 0 and 1, both excluded")
    return math.log(2 / dsq_a - 1), 1 / (1 - dsq_a)


def dsq_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """s (k / 2) (1 - tanh^2(k x / 2)) where |x| <= 1, else 0."""
    k, s = params.unbind()
    inside = x.abs().le_(1)
    return _sech2(x * (k / 2)).mul_(inside).mul_(s * k / 2)


@jit
def dsq_factor_triton(x, params):  # type: ignore[no-untyped-def]
    k = tl.load(params)
    s = tl.load(params + 1)
    return tl.where(tl.abs(x) <= 1, s * k / 2 * _sech2_triton(k / 2 * x), 0.0)


def dsq_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """s tanh(k x / 2) on [-1, 1], the sign beyond."""
    k, s = params.unbind()
    return s * (k / 2 * x.clamp(-1, 1)).tanh()


FDA_N = (9, 18)  # n in the first and in the last tenth of the training


def fda_schedule(progress: float, fda_w: float = 1.0) -> tuple[float, float]:
    """(w, n) at ``progress``: w is constant; n grows by one in every tenth of the training."""
    if not fda_w > 0:
        raise ValueError(f"fda_w is {fda_w}; it must be above 0")
    return fda_w, float(min(FDA_N[0] + int(10 * progress), FDA_N[1]))


def fda_factor(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """(4 w / pi) sum_{i=0..n} cos((2i + 1) w x); NaN at infinity, where a cosine has no value.

    The sum is sin(2 (n + 1) z) / (2 sin(z)) at z = w x. It changes its sign with each multiple of
    pi that z loses, and is n + 1 where z then is 0.
    """
    w, n = params.unbind()
    z = x * w
    turns = (z / math.pi).round_()
    # pi in two parts: turns times the first is exact.
    z = z.sub_(turns, alpha=3.140625).sub_(turns, alpha=math.pi - 3.140625).abs_().clamp_(min=1e-30)
    total = (z * (2 * n + 2)).sin_().div_(z.sin_())
    return total.mul_(turns.remainder_(2).mul_(-2).add_(1)).mul_(2 * w / math.pi)


@jit
def fda_factor_triton(x, params):  # type: ignore[no-untyped-def]
    """By cos((2i + 3) z) = cos((2i + 1) z) - 4 sin^2(z) sum_{j=0..i} cos((2j + 1) z)."""
    w = tl.load(params)
    n = tl.load(params + 1).to(tl.int32)
    step = 2 * tl.sin(w * x)
    step *= step
    term = tl.cos(w * x)
    total = term
    for _ in range(n):
        term -= step * total
        total += term
    return 1.2732395447351628 * w * total


def fda_surrogate(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """(4 / pi) sum_{i=0..n} sin((2i + 1) w x) / (2i + 1): the Fourier series of a square wave."""
    w, n = params.unbind()
    z, total = w * x, torch.zeros_like(x)
    for i in range(FDA_N[1] + 1):
        total += (i <= n) * ((2 * i + 1) * z).sin() / (2 * i + 1)
    return 4 / math.pi * total


ESTIMATORS = {
    estimator.name: estimator
    for estimator in (
        Estimator(
            name="reste",
            source="Wu et al., Estimator Meets Equilibrium Perspective, ICCV 2023",
            parameters=("o", "t", "m"),
            schedule=reste_schedule,
            factor=reste_factor,
            triton_factor=reste_factor_triton,
            surrogate=reste_surrogate,
            options={"o_end": Option(3.0, 1, 1e6, "the power o at the end of training")},
        ),
        Estimator(
            name="ste",
            source="Courbariaux et al., BinaryNet, 2016 (arXiv:1602.02830)",
            parameters=(),
            schedule=no_schedule,
            factor=ste_factor,
            triton_factor=ste_factor_triton,
            surrogate=ste_surrogate,
        ),
        Estimator(
            name="approxsign",
            source="Liu et al., Bi-Real Net, ECCV 2018 (arXiv:1808.00278)",
            parameters=(),
            schedule=no_schedule,
            factor=approxsign_factor,
            triton_factor=approxsign_factor_triton,
            surrogate=approxsign_surrogate,
        ),
        Estimator(
            name="ede",
            source="Qin et al., IR-Net, CVPR 2020 (arXiv:1909.10788)",
            parameters=("t", "k"),
            schedule=ede_schedule,
            factor=ede_factor,
            triton_factor=ede_factor_triton,
            surrogate=ede_surrogate,
            options={
                "ede_t_min": Option(
                    1e-3,
                    1e-6,
                    EDE_T_END,
                    "the slope t at the start of training; the paper's is 0.001 for resnet20 "
                    "in 1w1a, 0.1 in 1w32a and for vgg_small",
                )
            },
        ),
        Estimator(
            name="rbnn",
            source="Lin et al., Rotated Binary Neural Network, NeurIPS 2020 (arXiv:2009.13055)",
            parameters=("t", "k"),
            schedule=rbnn_schedule,
            factor=rbnn_factor,
            triton_factor=rbnn_factor_triton,
            surrogate=rbnn_surrogate,
            activation_schedule=rbnn_activation_schedule,
        ),
        Estimator(
            name="swishsign",
            source="Darabi et al., BNN+, 2018 (arXiv:1812.11800)",
            parameters=("b",),
            schedule=swishsign_schedule,
            factor=swishsign_factor,
            triton_factor=swishsign_factor_triton,
            surrogate=swishsign_surrogate,
            options={"swishsign_b": Option(5.0, 1e-6, 1e6, "the steepness b")},
        ),
        Estimator(
            name="dsq",
            source="Gong et al., Differentiable Soft Quantization, ICCV 2019 (arXiv:1908.05033)",
            parameters=("k", "s"),
            schedule=dsq_schedule,
            factor=dsq_factor,
            triton_factor=dsq_factor_triton,
            surrogate=dsq_surrogate,
            options={"dsq_a": Option(0.2, 1e-6, 1 - 1e-6, "the constant a; the paper learns it")},
        ),
        Estimator(
            name="fda",
            source="Xu et al., Learning Frequency Domain Approximation for Binary Neural Networks, "
            "NeurIPS 2021 (arXiv:2103.00841)",
            parameters=("w", "n"),
            schedule=fda_schedule,
            factor=fda_factor,
            triton_factor=fda_factor_triton,
            surrogate=fda_surrogate,
            options={"fda_w": Option(1.0, 1e-6, 1e6, "the frequency w")},
        ),
    )
}


def get_estimator(name: str) -> Estimator:
    """The estimator called ``name``; ``ValueError`` naming the known ones."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]
