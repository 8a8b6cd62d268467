"""How long a training step takes on N GPUs, from 1 to 512.

The tables are those of docs/scaling.md, which gives the source of every constant here and says what
follows. This is a model, not a measurement: everything is a function of the constants below and of
the networks as ``build_model`` makes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from launch.bench import results
from models import build_model

GPUS_PER_NODE = 8
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
IMAGENET = 1_281_167  # training images
DECODE = 7000.0  # images/s that are decoded for each GPU
MEMORY, FLOPS = 3.0e12, 798e12  # bytes/s of device copies and FLOP/s, measured on an H100
MOVED = {
    "resnet18": 72e6,
    "resnet34": 116e6,
    "resnet20": 6.3e6,
}  # bytes that a training step moves per image
PARAMETER_BYTES = 38  # bytes moved per parameter: 20 by SGD, 18 by kernels/weights.py in fp16
MIB = 2**20


@dataclass(frozen=True)
class Stage:
    """What one part of a network computes and sends in a step; ``name`` is that of its module."""

    name: str
    image: float  # seconds per image at the roofline, forward and backward
    norms: tuple[int, ...]  # channels of each synchronised batch norm
    gradients: tuple[
        int, ...
    ]  # the size of each, in the order in which the backward pass makes them


Network = tuple[Stage, ...]  # the stages in the order of the backward pass


@dataclass(frozen=True)
class Nccl:
    """How long all-reduces take over NVLink in a node and InfiniBand between nodes.

    Constants and formulas are those of NCCL 2.30.7, src/graph/tuning.cc, for Hopper: protocol LL
    for batch norm, NVLS (one node) and Tree/Simple for gradients. docs/scaling.md gives the source
    of the bandwidths.
    """

    local_slack: float = 1.35  # the time of small all-reduces over NCCL's estimate, in one node
    slack: float = 2.0  # the same in several nodes
    intra: float = 480e9  # bytes/s of the bus in one node
    inter: float = 344e9  # bytes/s of the bus between nodes
    symmetric: float = 0.0  # seconds of a small one in symmetric memory; 0 if that is not used

    def small(self, bytes_: float, gpus: int) -> float:
        """Seconds of an all-reduce of a few bytes, which is over before another begins: by a tree,
        or in a node by the ring where that is shorter."""
        nodes, local = layout(gpus)
        if nodes == 1 and self.symmetric:
            return self.symmetric
        # NCCL's limits of protocol LL: for Hopper in one node, for Intel hosts in 2 and in more.
        bandwidth = {1: 141e9, 2: 39e9}.get(nodes, 20.4e9)
        latency = 6.8e-6 + 2 * ((local - 1) * 0.6e-6 + int(math.log2(nodes)) * 5.0e-6)
        if nodes == 1:
            latency = min(latency, 6.6e-6 + 2 * (gpus - 1) * 0.6e-6)
        slack = self.local_slack if nodes == 1 else self.slack
        return slack * latency + 2 * bytes_ / bandwidth

    def large(self, bytes_: float, gpus: int) -> float:
        """Seconds of an all-reduce of a bucket of gradients, of which each byte passes the bus
        2 (N - 1) / N times."""
        nodes, local = layout(gpus)
        latency, bandwidth = 25e-6, self.intra
        if nodes > 1:
            bandwidth = self.inter
            latency = 8.4e-6 + 2 * ((local - 1) * 4.0e-6 + int(math.log2(nodes)) * 14e-6)
        return latency + 2 * (gpus - 1) / gpus * bytes_ / bandwidth


# A reduce-scatter and an all-gather of 2 to 4 KiB on 8 H100, in a CUDA graph.
SYMMETRIC = Nccl(symmetric=5.5e-6)


@dataclass(frozen=True)
class Plan:
    """How the processes talk. The defaults are what the code does."""

    group: int = 0  # GPUs that share statistics; 0: all, 1: no synchronisation
    gradient_bytes: int = 4  # bytes of a gradient's value as it is sent
    bucket: int = 25 * MIB  # bytes of each of DDP's buckets but the first
    overlap: bool = True  # whether gradients are sent while the backward pass goes on
    extra: float = 0.0  # seconds of a step that do not depend on the batch, such as launches
    slower: float = 1.0  # a GPU's time per image over its roofline
    fabric: Nccl = Nccl()


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step of ``batch`` images; the loader works beside it."""

    batch: int
    compute: float
    norms: float
    exposed: float  # what the gradients take after the backward pass is over

    @property
    def seconds(self) -> float:
        """How long the whole step takes."""
        return self.compute + self.norms + self.exposed


def layout(gpus: int) -> tuple[int, int]:
    """The number of nodes, and of GPUs in each."""
    return math.ceil(gpus / GPUS_PER_NODE), min(gpus, GPUS_PER_NODE)


def share(batch: int, gpus: int) -> int:
    """Images per GPU, rounded as a training rounds them."""
    return max(1, round(batch / gpus))


def norm_bytes(channels: int) -> tuple[int, int]:
    """Bytes that a batch norm sends forward and backward: two sums per channel and a count, in
    float64 and in fp32."""
    return 8 * (2 * channels + 1), 4 * (2 * channels + 1)


def gradients(network: Network) -> list[int]:
    """The size of each gradient, in the order in which the backward pass makes them."""
    return [values for stage in network for values in stage.gradients]


def buckets(gradients: Sequence[int], limit: int = 25 * MIB) -> list[list[int]]:
    """The places of the gradients that DDP sums together; it closes a bucket that is full."""
    found: list[list[int]] = [[]]
    held = 0
    for place, values in enumerate(gradients):
        if held >= (MIB if len(found) == 1 else limit):
            found.append([])
            held = 0
        found[-1].append(place)
        held += 4 * values
    return found


def step(network: Network, gpus: int, batch: int, plan: Plan = Plan()) -> Step:
    """A training step of ``batch`` images, rounded to a multiple of ``gpus``."""
    mine = share(batch, gpus)
    images = mine * sum(stage.image for stage in network) * plan.slower
    compute = images + PARAMETER_BYTES * sum(gradients(network)) / MEMORY + plan.extra
    if gpus == 1:
        return Step(mine, compute, 0.0, 0.0)
    norms = [norm_seconds(stage, gpus, plan) for stage in network]
    talk = math.fsum(map(sum, norms)) + plan.fabric.small(
        4, gpus
    )  # one for whether the loss is finite
    # Two of the three convolutions of a training step belong to the backward pass.
    backward = [
        2 / 3 * mine * stage.image * plan.slower + back
        for stage, (_, back) in zip(network, norms, strict=True)
    ]
    return Step(mine * gpus, compute, talk, exposed(network, gpus, backward, plan))


def norm_seconds(stage: Stage, gpus: int, plan: Plan) -> tuple[float, float]:
    """What the collectives of the batch norms of ``stage`` take, forward and backward."""
    group = min(plan.group or gpus, gpus)
    if group == 1:
        return 0.0, 0.0
    seconds = [[plan.fabric.small(n, group) for n in norm_bytes(c)] for c in stage.norms]
    return sum(forward for forward, _ in seconds), sum(backward for _, backward in seconds)


def exposed(network: Network, gpus: int, backward: Sequence[float], plan: Plan) -> float:
    """Seconds that sending gradients still takes when all stages have spent their ``backward``.

    A bucket is sent when the stage of its last gradient is done and the bucket before it has
    arrived.
    """
    times, now = [], 0.0
    for stage, seconds in zip(network, backward, strict=True):
        now += seconds
        times += [now] * len(stage.gradients)
    free, sizes = 0.0, gradients(network)
    for bucket in buckets(sizes, plan.bucket):
        sent = plan.gradient_bytes * sum(sizes[place] for place in bucket)
        ready = times[bucket[-1]] if plan.overlap else now
        free = max(free, ready) + plan.fabric.large(sent, gpus)
    return free - now


@cache
def network(arch: str) -> Network:
    """The stages of ``arch`` (resnet18, resnet34 or resnet20) in 1w1a, found by a forward and a
    backward pass of two images."""
    size, classes = (32, 10) if arch == "resnet20" else (224, 1000)
    model = build_model(arch, num_classes=classes)
    model.binarize_by_stage = True
    work: list[tuple[Any, ...]] = []  # the convolutions, each with its input and output
    there: list[tuple[Any, ...]] = []  # the parameters, in the order in which they get gradients
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(partial(_note, work, name.partition(".")[0]))
    for name, parameter in model.named_parameters():
        hook = partial(_note, there, name.partition(".")[0])
        parameter.register_post_accumulate_grad_hook(hook)
    model(torch.zeros(2, 3, size, size)).sum().backward()
    maps = [(at, m, out[0] if isinstance(out, tuple) else out) for at, m, _, out in work]
    memory = MOVED[arch] / sum(z.numel() for _, _, z in maps) / MEMORY
    stages = []
    for name in dict.fromkeys(at for at, _ in there):
        mine = [(m, z) for at, m, z in maps if at == name]
        macs = sum(m.weight[0].numel() * z[0].numel() for m, z in mine)
        image = 6 * macs / FLOPS + memory * sum(z.numel() for _, z in mine)
        modules = model.get_submodule(name).modules()
        norms = tuple(m.num_features for m in modules if isinstance(m, nn.BatchNorm2d))
        sizes = tuple(p.numel() for at, p in there if at == name)
        stages.append(Stage(name, image, norms, sizes))
    return tuple(stages)


def _note(notes: list[tuple[Any, ...]], stage: str, *what: object) -> None:
    notes.append((stage, *what))


def speedup(network: Network, gpus: int, batch: int, plan: Plan = Plan()) -> float:
    """How many times the images/s of one GPU."""
    one, many = (step(network, n, batch, plan) for n in (1, gpus))
    return many.batch / many.seconds * one.seconds / one.batch


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the names in ``header`` are separated by commas."""
    names = header.split(",")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted() -> str:
    """The table of what resnet18 sends, and when it is ready."""
    header = "stage,of the backward pass,of the gradients,MB,batch norms,bytes forward,backward"
    found, rows, image, ready = network("resnet18"), [], 0.0, 0
    images, everything = sum(stage.image for stage in found), sum(gradients(found))
    for stage in found:
        image, ready = image + stage.image, ready + sum(stage.gradients)
        done = f"{image / images:.0%}", f"{ready / everything:.0%}"
        sent = f"{4 * sum(stage.gradients) / 1e6:.2f}", str(len(stage.norms))
        sizes = [f"{n:,}" for n in norm_bytes(stage.norms[0])] if stage.norms else ["", ""]
        rows.append([stage.name, *done, *sent, *sizes])
    return table(header, rows)


def steps(batch: int = 8192) -> str:
    """The table of the milliseconds of the parts of a resnet18 step, by number of GPUs."""
    chosen, rows = network("resnet18"), []
    header = "GPUs,per GPU,compute ms,batch norm,gradients,step,decoding,images/s,efficiency"
    for gpus in COUNTS:
        s, mine = step(chosen, gpus, batch), share(batch, gpus)
        times = s.compute, s.norms, s.exposed, s.seconds, mine / DECODE
        ends = f"{s.batch / s.seconds:,.0f}", f"{speedup(chosen, gpus, batch) / gpus:.0%}"
        rows.append([str(gpus), str(mine), *map(ms, times), *ends])
    return table(header, rows)


LIMITS = (
    *(("resnet18", 750), ("resnet18", 2048), ("resnet18", 8192), ("resnet18", 32768)),
    *(("resnet34", 750), ("resnet34", 8192), ("resnet20", 256), ("resnet20", 2048)),
)


def limits() -> str:
    """The table of where each network stops scaling."""
    header = "network,batch,GPUs at 50 % efficiency,fastest at,times one GPU,images/s,an epoch"
    rows = []
    for arch, batch in LIMITS:
        gains = {n: speedup(network(arch), n, batch) for n in COUNTS}
        most = max(gains, key=lambda n: gains[n])
        best = step(network(arch), most, batch)
        rate = best.batch / best.seconds
        gpus = str(max(n for n in COUNTS if gains[n] >= n / 2)), str(most)
        numbers = f"{gains[most]:.1f}", f"{rate:,.0f}"
        epoch = "" if arch == "resnet20" else f"{IMAGENET / rate:.1f} s"
        rows.append([arch, f"{batch:,}", *gpus, *numbers, epoch])
    return table(header, rows)


WHAT_IF = {
    "as it is": Plan(),
    "gradients not overlapping": Plan(overlap=False),
    "gradients in buckets of 4 MiB": Plan(bucket=4 * MIB),
    "gradients in fp16": Plan(gradient_bytes=2),
    "statistics within the node": Plan(group=8),
    "that, from symmetric memory in a CUDA graph": Plan(group=8, fabric=SYMMETRIC),
    "that, and gradients in fp16": Plan(group=8, fabric=SYMMETRIC, gradient_bytes=2),
    "batch norm not synchronised": Plan(group=1),
    "*small collectives as NCCL estimates them*": Plan(fabric=Nccl(local_slack=1, slack=1)),
    "*between nodes 5 times that (GPUDirect-TCPXO)*": Plan(fabric=Nccl(slack=5)),
    "*half the bandwidth between nodes*": Plan(fabric=Nccl(inter=172e9)),
    "*GPU at a quarter of its roofline*": Plan(slower=4),
    "*1 ms more in every step (launches)*": Plan(extra=1e-3),
}
PLACES = ((750, 8), (750, 64), (8192, 64), (8192, 512), (32768, 512))  # batch, GPUs


def what_if() -> str:
    """The table of a resnet18 step with what could be done, and under other assumptions."""
    chosen, rows = network("resnet18"), []
    for name, plan in WHAT_IF.items():
        found = [(step(chosen, n, b, plan).seconds, speedup(chosen, n, b, plan)) for b, n in PLACES]
        rows.append([name, *(f"{ms(seconds)} ({gain:.1f})" for seconds, gain in found)])
    return table(",".join(["ms (times one GPU)", *(f"{b} on {n}" for b, n in PLACES)]), rows)


def ms(seconds: float) -> str:
    """Seconds, written in milliseconds."""
    return f"{seconds * 1e3:.2f}"


TABLES = {
    "What the networks send": counted,
    "A step of resnet18, batch 8,192": steps,
    "Where it stops": limits,
    "What if": what_if,
}


def draw() -> None:
    """Draw the speed by number of GPUs."""
    if (figure := results.new_figure(7, 5)) is None:
        return
    axes = figure.subplots()
    for arch, batch in LIMITS:
        gains = [speedup(network(arch), n, batch) for n in COUNTS]
        style = {"resnet18": "-", "resnet34": "--", "resnet20": ":"}[arch]
        axes.plot(COUNTS, gains, style, marker=".", label=f"{arch}, batch {batch:,}")
    axes.plot(COUNTS, COUNTS, color="black", linewidth=0.8, label="ideal")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="images/s, times one GPU")
    axes.minorticks_off()
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.legend(fontsize="small")
    results.save(figure, results.RESULTS / "scaling.png")


def report() -> None:
    """Print the tables and draw docs/results/scaling.png."""
    for title, make in TABLES.items():
        print(f"## {title}\n\n{make()}\n")
    draw()
