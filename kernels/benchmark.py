"""Microbenchmarks of the ops and blocks at the layer shapes of real networks.

Providers: official (the official formulation: boolean masks, separate modules, fp32, NCHW), eager
(plain modules, a where-based estimator, channels_last, half precision), compile (the same under
torch.compile in its strongest mode) and ours. A block is everything between two convolutions:
ReLU, batch norm, residual and sign. A provider whose results are wrong gets no time.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels._triton import triton
from kernels.batchnorm import batch_statistics, norm_binarize
from kernels.binarize import binarize
from kernels.estimators import ESTIMATORS

MODES = ("forward", "backward", "both")
PROVIDERS = ("official", "eager", "compile", "ours")
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the rms
Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One op or block at one shape. ``passes``: tensors of that shape that have to be read or
    written at least, by mode."""

    op: str  # binarize | block
    layer: str  # <network>.<layer>
    shape: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """As the CSV has it: <op>/<network>.<layer>/NxCxHxW."""
        return f"{self.op}/{self.layer}/{'x'.join(map(str, self.shape))}"

    def bytes(self, mode: str, itemsize: int) -> int:
        """What a device must move for this at least, if every pass is perfect.

        binarize: x, y; dy, x, dx. block: z, z, residual, y, yb; dy, dyb, y, z, g, g, z, dz.
        """
        forward, backward = (2, 3) if self.op == "binarize" else (5, 8)
        passes = {"forward": forward, "backward": backward, "both": forward + backward}[mode]
        n, c, h, w = self.shape
        return passes * n * c * h * w * itemsize


@dataclass(frozen=True)
class Measurement:
    """Seconds of every timed call, or None where the provider's results were wrong."""

    case: Case
    provider: str
    mode: str
    seconds: list[float] | None
    bytes: int


class MaskedSign(torch.autograd.Function):
    """The official estimator: o read by the host, regions gathered and scattered by masks."""

    @staticmethod
    def forward(ctx, x, params):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, params)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, params = ctx.saved_tensors
        o, t, m = params
        factor = torch.zeros_like(x)
        for side in (x, -x):
            power = (side > m) & (side <= t)
            factor[power] = side[power] ** ((1 - o) / o) / o
            factor[(side >= 0) & (side <= m)] = m.item() ** (1 / o.item()) / m.item()
        return grad * factor, None


class WhereSign(torch.autograd.Function):
    """What a good engineer writes: torch.where, and o on the device."""

    @staticmethod
    def forward(ctx, x, params):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, params)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, params = ctx.saved_tensors
        o, t, m = params.unbind()
        a = x.to(params.dtype).abs()
        power = torch.maximum(a, m) ** ((1 - o) / o)
        factor = torch.where(a <= m, power, torch.where(a <= t, power / o, 0.0))
        return (grad.to(params.dtype) * factor).to(x.dtype), None


def layers(network: str, model: torch.nn.Module, images: int, size: int) -> list[Case]:
    """The distinct shapes at which ``model`` normalises and binarizes ``images`` images of
    ``size`` pixels, each under the name of the first layer that has it."""
    shapes: dict[tuple[int, ...], str] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            shapes.setdefault(tuple(arguments[0].shape), name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and ".bn" in f".{name}":
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return [
        Case(op, f"{network}.{name}", (images, *shape[1:]))
        for op in ("binarize", "block")
        for shape, name in shapes.items()
        if len(shape) == 4
    ]


def measure(
    cases: list[Case], device: torch.device, dtype: torch.dtype, providers: tuple[str, ...]
) -> Iterator[Measurement]:
    """Time every provider in every mode; correctness first."""
    for case, provider in itertools.product(cases, providers):
        kept = torch.float32 if provider == "official" else dtype
        leaves, grads, run = _build(case, provider, device, kept)
        try:
            right = _is_right(case, leaves, grads, run, device)
        except Exception as error:  # no compiler, out of memory: the others go on
            print(f"{case.name} {provider}: {type(error).__name__}: {str(error).splitlines()[0]}")
            right = False
        for mode in MODES:
            seconds = _time(_call(mode, leaves, grads, run), device) if right else None
            yield Measurement(case, provider, mode, seconds, case.bytes(mode, dtype.itemsize))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy on ``device``."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = sorted(_time(lambda: target.copy_(source), device))
    return 2 * source.nbytes / seconds[len(seconds) // 2]


def _build(
    case: Case, provider: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Run]:
    """Leaves that want gradients, the gradients of the outputs, and the call."""
    official = provider == "official"
    layout = torch.contiguous_format if official else torch.channels_last
    generator = torch.Generator(device).manual_seed(0)
    channels = case.shape[1]

    def normal() -> Tensor:
        t = torch.empty(case.shape, device=device).normal_(generator=generator)
        return t.to(dtype, memory_format=layout)

    params = torch.tensor(ESTIMATORS["reste"].schedule(0.7), device=device)
    sign = MaskedSign.apply if official else WhereSign.apply
    if case.op == "binarize":
        x = normal().requires_grad_()
        if provider == "ours":
            return [x], [normal()], lambda: (binarize(x, params),)
        plain = _compiled(sign) if provider == "compile" else sign
        return [x], [normal()], lambda: (plain(x, params),)
    z = (normal() * 20).round().requires_grad_()  # sums of ±1 are integers
    residual = normal().requires_grad_()
    weight = torch.rand(channels, device=device, generator=generator).add_(0.5).requires_grad_()
    bias = torch.zeros(channels, device=device, requires_grad=True)
    scale = torch.tensor(0.03, device=device, requires_grad=True)
    running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    batches = torch.zeros((), dtype=torch.int64, device=device)
    leaves, grads = [z, residual, weight, bias, scale], [normal(), normal()]

    def separate(
        z: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        y = F.batch_norm(F.relu(z) * scale.to(z.dtype), *running, weight, bias, True, 0.1, 1e-5)
        y = y + residual
        return y, sign(y, params)

    def fused() -> tuple[Tensor, ...]:
        statistics = batch_statistics(z, *running, batches, scale=scale)
        return norm_binarize(
            z, weight, bias, *statistics, scale=scale, residual=residual, params=params,
            estimator="reste",
        )  # fmt: skip

    if provider == "ours":
        return leaves, grads, fused
    block = _compiled(separate) if provider == "compile" else separate
    return leaves, grads, lambda: block(*leaves)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # "backward" runs one graph many times
    return torch.compile(function, fullgraph=True, mode="max-autotune-no-cudagraphs")


def _is_right(
    case: Case, leaves: list[Tensor], grads: list[Tensor], run: Run, device: torch.device
) -> bool:
    """Whether y and the gradients of activations are those of float64, but for one value in a
    hundred: rounding moves some across a threshold of the estimator, where its factor jumps."""
    outputs = run()
    found = [outputs[0], *torch.autograd.grad(outputs, leaves[:2], grads)]
    dtype = leaves[0].dtype
    wide = [t.detach().double().requires_grad_() for t in leaves]
    params = torch.tensor(ESTIMATORS["reste"].schedule(0.7), dtype=torch.float64, device=device)
    if case.op == "binarize":
        expected = (WhereSign.apply(wide[0], params),)
    else:
        z, residual, weight, bias, scale = wide
        u = F.relu(z) * scale
        y = F.batch_norm(u, None, None, weight, bias, True) + residual
        expected = y, WhereSign.apply(y, params)  # type: ignore[assignment]
    wanted = torch.autograd.grad(expected, wide[:2], [g.double() for g in grads])
    pairs = zip(found, (expected[0], *wanted), strict=True)
    return all(
        ((a - b).abs() > TOLERANCE[dtype] * b.square().mean().sqrt()).double().mean() < 0.01
        for a, b in pairs
    )


def _call(mode: str, leaves: list[Tensor], grads: list[Tensor], run: Run) -> Callable[[], object]:
    if mode == "forward":
        return run
    if mode == "both":
        return lambda: torch.autograd.grad(run(), leaves, grads)
    outputs = run()
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def _time(call: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each call, after a warm-up."""
    if device.type == "cuda":
        return [ms / 1e3 for ms in triton.testing.do_bench(call, return_mode="all")]
    from time import perf_counter

    times = []
    for _ in range(12):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return times[2:]
