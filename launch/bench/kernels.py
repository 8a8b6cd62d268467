"""Microbenchmarks of the ops and blocks at the layer shapes of real networks.

Providers: official (the official formulation: boolean masks, separate modules, fp32, NCHW), eager
(plain modules, a where-based estimator, channels_last, half precision), compile (the same under
torch.compile in its strongest mode) and ours. A block is everything between two convolutions:
ReLU, batch norm, residual and sign. A provider whose results are wrong gets no time.

A convolution is z and the statistics of relu(z), forward only: ``conv`` in cuDNN (eager), then our
statistics; ``conv_nchw`` and ``conv_padded<n>`` the same in another layout or with zero channels up
to n; ``conv_int8``, ``conv_fp8`` and ``conv_fp16`` in kernels/candidates/convolution.py (ours), in
the fastest of its tiles. On a GPU it is timed as a CUDA graph, as a training runs it, because the
host takes longer to launch one than the GPU to compute it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels._triton import triton
from kernels.candidates.convolution import Tile, convolve, tiles
from kernels.estimators import ESTIMATORS
from kernels.norm import batch_statistics, deviations, norm_binarize
from kernels.sign import binarize

MODES = ("forward", "backward", "both")
PROVIDERS = ("official", "eager", "compile", "ours")
OPERANDS = {
    "conv_int8": torch.int8,
    "conv_fp8": torch.float8_e4m3fn,
    "conv_fp16": torch.float16,
}
PADDED = {"conv_padded32": 32, "conv_padded64": 64}
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the rms
Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One op or block at one shape; or a convolution of that shape to ``channels``."""

    op: str  # binarize | block | conv | conv_nchw | of PADDED | of OPERANDS
    layer: str  # <network>.<layer>
    shape: tuple[int, int, int, int]
    channels: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """As the CSV has it: <op>/<network>.<layer>/NxCxHxW."""
        return f"{self.op}/{self.layer}/{'x'.join(map(str, self.shape))}"

    @property
    def modes(self) -> tuple[str, ...]:
        return ("forward",) if self.channels else MODES

    def has(self, provider: str) -> bool:
        """Whether this is what ``provider`` does: each convolution is one provider's."""
        return not self.channels or provider == ("ours" if self.op in OPERANDS else "eager")

    def bytes(self, mode: str, itemsize: int) -> int:
        """What a device must move for this at least, if every pass is perfect.

        binarize: x, y; dy, x, dx. block: z, z, residual, y, yb; dy, dyb, y, z, g, g, z, dz.
        A convolution: its operands without padding, and z, once each.
        """
        n, c, h, w = self.shape
        if self.channels:
            operand = OPERANDS[self.op].itemsize if self.op in OPERANDS else itemsize
            positions = n * -(-h // self.stride) * -(-w // self.stride)
            read = n * c * h * w + self.channels * c * 9
            return read * operand + positions * self.channels * itemsize
        forward, backward = (2, 3) if self.op == "binarize" else (5, 8)
        passes = {"forward": forward, "backward": backward, "both": forward + backward}[mode]
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
    for name, module, shape in _inputs(model, size):
        if isinstance(module, torch.nn.BatchNorm2d) and ".bn" in f".{name}" and len(shape) == 4:
            shapes.setdefault(shape, name)
    return [
        Case(op, f"{network}.{name}", (images, c, h, w))
        for op in ("binarize", "block")
        for (_, c, h, w), name in shapes.items()
    ]


def convolutions(
    network: str, model: torch.nn.Module, images: int, size: int, ops: list[str]
) -> list[Case]:
    """``ops`` at the distinct 3x3 convolutions of ``model``, each under the name of the first
    layer; without the stem, which reads images, and where padding changes nothing."""
    found: dict[tuple[tuple[int, ...], int, int], str] = {}
    for name, module, shape in _inputs(model, size):
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and shape[1] > 3:
            found.setdefault((shape, module.out_channels, module.stride[0]), name)
    return [
        Case(op, f"{network}.{name}", (images, c, h, w), channels, stride)
        for op in ops
        for ((_, c, h, w), channels, stride), name in found.items()
        if op not in PADDED or min(c, channels) < PADDED[op]
    ]


def convolution_ops(device: torch.device) -> list[str]:
    """The convolutions that ``device`` can run; a line says what a GPU lacks."""
    ops = ["conv", "conv_nchw", *PADDED]
    if device.type != "cuda":
        return ops
    if torch.cuda.get_device_capability(device) >= (8, 9):
        return [*ops, *OPERANDS]
    print("conv_fp8: not timed, since this GPU has no fp8")
    return [*ops, *(op for op in OPERANDS if op != "conv_fp8")]


def _inputs(
    model: torch.nn.Module, size: int
) -> list[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Every module, in the order of the forward pass, and the shape of what it reads of an image
    of ``size`` pixels."""
    seen: list[tuple[str, torch.nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            if isinstance(arguments[0], Tensor):
                seen.append((name, module, tuple(arguments[0].shape)))

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return seen


def measure(
    cases: list[Case], device: torch.device, dtype: torch.dtype, providers: tuple[str, ...]
) -> Iterator[Measurement]:
    """Time every provider in every mode; correctness first."""
    for case, provider in itertools.product(cases, providers):
        if not case.has(provider):
            continue
        kept = torch.float32 if provider == "official" else dtype
        build = _build_convolution if case.channels else _build
        try:
            leaves, grads, run = build(case, provider, device, kept)
            if case.channels:
                run = _graphed(run, device)
            right = _is_right(case, leaves, grads, run, device)
        except Exception as error:  # no compiler, out of memory: the others go on
            print(f"{case.name} {provider}: {type(error).__name__}: {str(error).splitlines()[0]}")
            right = False
        for mode in case.modes:
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


def _build_convolution(
    case: Case, provider: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Run]:
    """As ``_build``; the leaves are xb and the weight, without padding."""
    layout = torch.contiguous_format if case.op == "conv_nchw" else torch.channels_last
    generator = torch.Generator(device).manual_seed(0)

    def signs(*shape: int) -> Tensor:
        t = torch.empty(shape, device=device).normal_(generator=generator)
        return torch.where(t < 0, -1.0, 1.0).to(OPERANDS.get(case.op, dtype), memory_format=layout)

    xb, weight = leaves = [signs(*case.shape), signs(case.channels, case.shape[1], 3, 3)]
    if provider == "ours":
        return leaves, [], _with_fastest_tile(case, xb, weight, dtype, device)
    wide = PADDED.get(case.op, 0)
    more_in, more_out = (max(0, wide - channels) for channels in (case.shape[1], case.channels))
    xb = F.pad(xb, (0, 0, 0, 0, 0, more_in)).contiguous(memory_format=layout)
    weight = F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
    weight = weight.contiguous(memory_format=layout)

    def separate() -> tuple[Tensor, ...]:
        z = F.conv2d(xb, weight, stride=case.stride, padding=1)
        z = z.contiguous(memory_format=torch.channels_last)  # as the ops that follow read it
        mean, squares = deviations(z, True)
        return z[:, : case.channels], mean[: case.channels], squares[: case.channels]

    return leaves, [], separate


def _with_fastest_tile(
    case: Case, xb: Tensor, weight: Tensor, dtype: torch.dtype, device: torch.device
) -> Run:
    def run_with(tile: Tile) -> Run:
        return lambda: convolve(xb, weight, stride=case.stride, dtype=dtype, tile=tile)

    def seconds(tile: Tile) -> float:
        times = sorted(_time(_graphed(run_with(tile), device), device))
        return times[len(times) // 2]

    fastest = min(tiles(case.channels, xb.itemsize), key=seconds)
    print(f"{case.name} ours: {fastest}")
    return run_with(fastest)


def _graphed(run: Run, device: torch.device) -> Run:
    """On a GPU ``run`` as a CUDA graph, called once before it is captured."""
    if device.type != "cuda":
        return run
    run()
    torch.cuda.synchronize()
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            outputs = run()
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own behind

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # "backward" runs one graph many times
    return torch.compile(function, fullgraph=True, mode="max-autotune-no-cudagraphs")


def _is_right(
    case: Case, leaves: list[Tensor], grads: list[Tensor], run: Run, device: torch.device
) -> bool:
    """Whether y and the gradients of activations, or z and its statistics, are those of float64,
    but for one value in a hundred: rounding moves some across a threshold of the estimator, where
    its factor jumps."""
    outputs = run()
    wide = [t.detach().double() for t in leaves]
    if case.channels:
        found, expected = [*outputs], _convolved(case, *wide)
    else:
        found = [outputs[0], *torch.autograd.grad(outputs, leaves[:2], grads)]
        expected = _differentiated(case, wide, grads, device)
    allowed = TOLERANCE[found[0].dtype]
    return all(
        ((a - b).abs() > allowed * b.square().mean().sqrt()).double().mean() < 0.01
        for a, b in zip(found, expected, strict=True)
    )


def _convolved(case: Case, xb: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    z = F.conv2d(xb, weight, stride=case.stride, padding=1)
    rows = z.permute(0, 2, 3, 1).reshape(-1, case.channels)
    return z, *reference.deviations(rows, True)


def _differentiated(
    case: Case, leaves: list[Tensor], grads: list[Tensor], device: torch.device
) -> tuple[Tensor, ...]:
    """y and the gradients of the first two leaves."""
    for leaf in leaves:
        leaf.requires_grad_()
    params = torch.tensor(ESTIMATORS["reste"].schedule(0.7), dtype=torch.float64, device=device)
    outputs: tuple[Tensor, ...]
    if case.op == "binarize":
        outputs = (WhereSign.apply(leaves[0], params),)
    else:
        z, residual, weight, bias, scale = leaves
        y = F.batch_norm(F.relu(z) * scale, None, None, weight, bias, True) + residual
        outputs = y, WhereSign.apply(y, params)
    wanted = torch.autograd.grad(outputs, leaves[:2], [g.double() for g in grads])
    return outputs[0], *wanted


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
