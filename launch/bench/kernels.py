"""Microbenchmarks of the ops, blocks and convolutions of launch/bench/cases.py.

Providers: official (the official formulation: boolean masks, separate modules, fp32, NCHW), eager
(plain modules, a where-based estimator, channels_last, half precision), compile (the same under
torch.compile in its strongest mode) and ours. A provider whose results are wrong gets no time. Of
the convolutions, those in kernels/candidates/convolution.py are ours, in the fastest of their
tiles; those in cuDNN are eager's.

On a GPU the device's own time is taken, as launch/bench/device_clock.py says: CUDA graphs wherever
that can be, and an empty L2 cache before a pass that finds it so in a training (``Case.is_cold``).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.candidates.convolution import Tile, convolve, tiles
from kernels.estimators import ESTIMATORS
from kernels.norm import batch_statistics, deviations, norm_binarize
from kernels.pool import norm_pool_binarize
from kernels.sign import binarize
from launch.bench.cases import OPERANDS, PADDED, Case, convolution_ops, convolutions, layers
from launch.bench.device_clock import Phase, own_stream
from launch.bench.official import MaskedReSTE
from launch.bench.results import Row, device_name, new_figure, results_file, row, save
from launch.bench.timing import time_kernel, time_phases
from models import build_model
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.train.precision import AUTOCAST

PROVIDERS = ("official", "eager", "compile", "ours")
TOLERANCE = {
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}  # relative to the root mean square
# Images and their side in pixels.
NETWORKS = {"resnet18": (256, 224), "resnet20": (256, 32), "vgg_small": (256, 32)}
CPU_BATCH = 16
CHECKED = 16  # channels that are compared at a time: float64 takes four times the memory
Run = Callable[[], tuple[Tensor, ...]]


def benchmark(config: Config, device: torch.device, batch: int | None = None) -> list[Row]:
    """Microseconds of ops, blocks and convolutions, and their share of the bandwidth of a copy."""
    if device.type == "cpu" and config.train.device != "cpu":
        raise UserError("there is no CUDA device; make bench-kernels DEVICE=cpu times the CPU path")
    dtype = torch.float32 if device.type == "cpu" else AUTOCAST.get(config.train.precision)
    dtype = dtype or torch.float16
    torch.backends.cudnn.benchmark = True
    cases, ops = [], convolution_ops(device)
    for arch, (images, size) in NETWORKS.items():
        images = batch or (CPU_BATCH if device.type == "cpu" else images)
        cases += layers(arch, model := build_model(arch), images, size)
        cases += convolutions(arch, model, images, size, ops)
    rows, shares = [], {}
    with own_stream(device):
        peak = copy_bandwidth(device)
        print(f"{peak / 1e9:.0f} GB/s copied; each case in {dtype}, official in fp32")
        for each in measure(cases, device, dtype, PROVIDERS):
            name = each.case.name, each.provider, each.mode
            if each.seconds is None:
                print(f"{name[0]:52} {name[1]:9} {name[2]:9} wrong: not timed")
                continue
            share = each.bytes / each.seconds / peak
            rows += _rows(each, share, device)
            shares[name] = share.median().item()
            took = f"{each.seconds.median().item() * 1e6:>10.1f} us {shares[name]:.3f}"
            print(f"{name[0]:52} {name[1]:9} {name[2]:9} {took} {each.way}")
    _plot_kernels(shares, peak, device)
    _print_convolutions(rows)
    return rows


def _rows(each: "Measurement", share: Tensor, device: torch.device) -> list[Row]:
    """The time and the ``share`` of the bandwidth; on a GPU also how the time was taken."""
    assert each.seconds is not None
    name = each.case.name, each.provider, each.mode
    rows = [
        row(*name, "time", "us", each.seconds * 1e6),
        row(*name, "bandwidth_share", "1", share),
    ]
    if device.type == "cuda":
        flushed = torch.tensor([each.flushed]).double()
        captured = torch.tensor([each.way == "graph"]).double()
        rows += [row(*name, "l2_flushed", "1", flushed), row(*name, "captured", "1", captured)]
    return rows


def _print_convolutions(rows: list[Row]) -> None:
    """Print the fastest convolution of each layer, beside cuDNN's in NHWC."""
    layers: dict[str, dict[str, float]] = {}
    for each in rows:
        op, _, layer = str(each["case"]).partition("/")
        if op.startswith("conv") and each["metric"] == "time":
            layers.setdefault(layer, {})[op] = float(str(each["p50"]))
    for layer, times in layers.items():
        best = min(times, key=times.__getitem__)
        cudnn = times.get("conv", float("nan"))
        print(f"{layer:44} {best:13} {times[best]:.1f} us; conv {cudnn:.1f} us")


def _plot_kernels(
    shares: dict[tuple[str, str, str], float], peak: float, device: torch.device
) -> None:
    """Draw the GB/s of every block, forward and backward, with a bar for each provider."""
    cases = list(dict.fromkeys(case for case, _, _ in shares if case.startswith("block/")))
    if (figure := new_figure(9, 1.5 + 0.55 * len(cases))) is None:
        return
    axes = figure.subplots()
    for i, provider in enumerate(PROVIDERS):
        speeds = [shares.get((case, provider, "both"), 0) * peak / 1e9 for case in cases]
        places = [place + 0.2 * i for place in range(len(cases))]
        axes.barh(places, speeds, height=0.2, label=provider)
    axes.axvline(peak / 1e9, color="black", linestyle=":", label="copy")
    axes.set_yticks([place + 0.3 for place in range(len(cases))], [c[6:] for c in cases])
    axes.invert_yaxis()
    axes.set_xlabel("GB/s of the bytes that must move, forward and backward")
    axes.set_title(f"Between two convolutions, {device_name(device)}")
    axes.legend(loc="lower right")
    save(figure, results_file("kernels", device).with_suffix(".png"))


@dataclass(frozen=True)
class Measurement:
    """Seconds of every timed call, or None where the provider's results were wrong."""

    case: Case
    provider: str
    mode: str
    seconds: Tensor | None  # (N,) float64
    bytes: int
    way: str  # of device_clock.Timed
    flushed: float  # the share of the passes before which the L2 cache was filled with other data


class WhereSign(torch.autograd.Function):
    """sign(x) as a good engineer writes it: torch.where, and o on the device."""

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


def _masked(x: Tensor, params: Tensor) -> Tensor:
    """The official estimator, by boolean masks; m is 0.1 in it."""
    return MaskedReSTE.apply(x, params[0], params[1])


def measure(
    cases: list[Case], device: torch.device, dtype: torch.dtype, providers: tuple[str, ...]
) -> Iterator[Measurement]:
    """Time every provider in every mode, after its results were compared with float64."""
    for case, provider in itertools.product(cases, providers):
        if case.has(provider):
            yield from measure_case(case, provider, device, dtype)


def measure_case(
    case: Case, provider: str, device: torch.device, dtype: torch.dtype
) -> Iterator[Measurement]:
    """Time ``provider`` in every mode of ``case``, after its results were compared with float64."""
    kept = torch.float32 if provider == "official" else dtype
    build = _build_convolution if case.channels else _build
    try:
        leaves, grads, run = build(case, provider, device, kept)
        right = _is_right(case, leaves, grads, run, device)
    except Exception as error:  # such as for want of a compiler or memory; the others go on
        print(f"{case.name} {provider}: {type(error).__name__}: {str(error).splitlines()[0]}")
        right = False
    for mode in case.modes:
        seconds, way, flushed = None, "", 0.0
        if right:
            phases = make_phases(case, mode, leaves, grads, run, dtype, device)
            seconds, way = time_phases(phases, device)
            flushed = sum(phase.is_cold for phase in phases) / len(phases)
        size = case.bytes(mode, dtype.itemsize)
        yield Measurement(case, provider, mode, seconds, size, way, flushed)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy on ``device``."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = time_kernel(lambda: target.copy_(source), device).quantile(0.5).item()
    return 2 * source.nbytes / seconds


def _build(
    case: Case, provider: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Run]:
    """The leaves that want gradients, the gradients of the outputs, and what computes the
    outputs."""
    official = provider == "official"
    layout = torch.contiguous_format if official else torch.channels_last
    generator = torch.Generator(device).manual_seed(0)
    channels = case.shape[1]

    def normal() -> Tensor:
        t = torch.empty(case.shape, device=device).normal_(generator=generator)
        return t.to(dtype, memory_format=layout)

    params = torch.tensor(ESTIMATORS["reste"].schedule(0.7), device=device)
    sign = _masked if official else WhereSign.apply
    if case.op == "binarize":
        x = normal().requires_grad_()
        if provider == "ours":
            return [x], [normal()], lambda: (binarize(x, params),)
        plain = _compiled(sign) if provider == "compile" else sign
        return [x], [normal()], lambda: (plain(x, params),)
    if case.op == "stem":
        return _build_stem(case, provider, normal, params)
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


def _build_stem(
    case: Case, provider: str, normal: Callable[[], Tensor], params: Tensor
) -> tuple[list[Tensor], list[Tensor], Run]:
    """The same for a stem; ``normal`` draws maps of z's shape."""
    channels, device = case.shape[1], params.device
    z = (normal() * 20).round().requires_grad_()  # what differs does so in half precision, too
    weight = torch.ones(channels, device=device, requires_grad=True)
    bias = torch.zeros(channels, device=device, requires_grad=True)
    running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    batches = torch.zeros((), dtype=torch.int64, device=device)
    sign = _masked if provider == "official" else WhereSign.apply
    grads = [F.max_pool2d(normal(), 3, stride=2, padding=1) for _ in range(2)]

    def separate(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = F.batch_norm(F.relu(z), *running, weight, bias, True, 0.1, 1e-5)
        x = F.max_pool2d(y, 3, stride=2, padding=1)
        return x, sign(x, params)

    def fused() -> tuple[Tensor, ...]:
        statistics = batch_statistics(z, *running, batches)
        return norm_pool_binarize(z, weight, bias, *statistics, params=params, estimator="reste")

    leaves = [z, weight, bias]
    if provider == "ours":
        return leaves, grads, fused
    stem = _compiled(separate) if provider == "compile" else separate
    return leaves, grads, lambda: stem(*leaves)


def _build_convolution(
    case: Case, provider: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Run]:
    """The same for a convolution; the leaves are xb and the weight, without padding."""
    layout = torch.contiguous_format if case.op == "conv_nchw" else torch.channels_last
    generator = torch.Generator(device).manual_seed(0)

    def signs(*shape: int) -> Tensor:
        t = torch.empty(shape, device=device).normal_(generator=generator)
        return torch.where(t < 0, -1.0, 1.0).to(OPERANDS.get(case.op, dtype), memory_format=layout)

    xb, weight = leaves = [signs(*case.shape), signs(case.channels, case.shape[1], 3, 3)]
    if provider == "ours":
        return leaves, [], _with_fastest_tile(case, xb, weight, dtype)
    wide = PADDED.get(case.op, 0)
    more_in, more_out = (max(0, wide - channels) for channels in (case.shape[1], case.channels))
    xb = F.pad(xb, (0, 0, 0, 0, 0, more_in)).contiguous(memory_format=layout)
    weight = F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
    weight = weight.contiguous(memory_format=layout)

    def separate() -> tuple[Tensor, ...]:
        z = F.conv2d(xb, weight, stride=case.stride, padding=1)
        z = z.contiguous(memory_format=torch.channels_last)  # which the ops that follow read
        mean, squares = deviations(z, True)
        return z[:, : case.channels], mean[: case.channels], squares[: case.channels]

    return leaves, [], separate


def _with_fastest_tile(case: Case, xb: Tensor, weight: Tensor, dtype: torch.dtype) -> Run:
    def run_with(tile: Tile) -> Run:
        return lambda: convolve(xb, weight, stride=case.stride, dtype=dtype, tile=tile)

    def seconds(tile: Tile) -> float:
        phases = make_phases(case, "forward", [], [], run_with(tile), dtype, xb.device)
        return time_phases(phases, xb.device).seconds.quantile(0.5).item()

    fastest = min(tiles(case.channels, xb.itemsize), key=seconds)
    print(f"{case.name} ours: {fastest}")
    return run_with(fastest)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # since "backward" runs one graph many times
    return torch.compile(function, fullgraph=True, mode="max-autotune-no-cudagraphs")


def _is_right(
    case: Case, leaves: list[Tensor], grads: list[Tensor], run: Run, device: torch.device
) -> bool:
    """Whether y and the gradients of activations, or z and its statistics, are those of float64.

    One value in a hundred may differ, since rounding moves some across a threshold of the
    estimator, where its factor jumps.
    """
    outputs = run()
    if case.channels:
        return _agree(outputs, _convolved(case, *(t.double() for t in leaves)))
    found = outputs[0].detach(), *torch.autograd.grad(outputs, _maps(leaves), grads)
    return all(
        _agree(
            [_channels(t, first) for t in found],
            _differentiated(
                case,
                [_channels(t, first).double() for t in leaves],
                [_channels(t, first) for t in grads],
                device,
            ),
        )
        for first in range(0, case.shape[1], CHECKED)
    )


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    allowed = TOLERANCE[found[0].dtype]
    return all(
        ((a - b).abs() > allowed * b.square().mean().sqrt()).double().mean().item() < 0.01
        for a, b in zip(found, expected, strict=True)
    )


def _channels(t: Tensor, first: int) -> Tensor:
    """CHECKED channels of a map or of a vector of channels, from ``first`` on; numbers as they
    are."""
    t, chosen = t.detach(), slice(first, first + CHECKED)
    return t[:, chosen] if t.dim() > 1 else t[chosen] if t.dim() else t


def _maps(leaves: list[Tensor]) -> list[Tensor]:
    """The activations among the leaves."""
    return [leaf for leaf in leaves if leaf.dim() == 4]


def _convolved(case: Case, xb: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    z = F.conv2d(xb, weight, stride=case.stride, padding=1)
    rows = z.permute(0, 2, 3, 1).reshape(-1, case.channels)
    return z, *reference.deviations(rows, True)


def _differentiated(
    case: Case, leaves: list[Tensor], grads: list[Tensor], device: torch.device
) -> tuple[Tensor, ...]:
    """The first output and the gradients of the activations."""
    for leaf in leaves:
        leaf.requires_grad_()
    params = torch.tensor(ESTIMATORS["reste"].schedule(0.7), dtype=torch.float64, device=device)
    outputs: tuple[Tensor, ...]
    if case.op == "binarize":
        outputs = (WhereSign.apply(leaves[0], params),)
    elif case.op == "stem":
        z, weight, bias = leaves
        y = F.batch_norm(F.relu(z), None, None, weight, bias, True)
        x = F.max_pool2d(y, 3, stride=2, padding=1)
        outputs = x, WhereSign.apply(x, params)
    else:
        z, residual, weight, bias, scale = leaves
        y = F.batch_norm(F.relu(z) * scale, None, None, weight, bias, True) + residual
        outputs = y, WhereSign.apply(y, params)
    wanted = torch.autograd.grad(outputs, _maps(leaves), [g.double() for g in grads])
    return outputs[0], *wanted


def make_phases(
    case: Case,
    mode: str,
    leaves: list[Tensor],
    grads: list[Tensor],
    run: Run,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Phase]:
    """The passes of ``mode``, each as cold as a training step would find it."""
    on_gpu = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else 0
    cold = {each: case.is_cold(each, dtype.itemsize, cache) for each in ("forward", "backward")}
    if mode == "forward":
        return [Phase(run, cold["forward"])]
    if mode == "backward":
        outputs = run()
        again = partial(torch.autograd.grad, outputs, leaves, grads, retain_graph=True)
        return [Phase(again, cold["backward"])]
    made: list[tuple[Tensor, ...]] = []
    return [
        Phase(lambda: made.append(run()), cold["forward"]),
        Phase(lambda: torch.autograd.grad(made.pop(), leaves, grads), cold["backward"]),
    ]
