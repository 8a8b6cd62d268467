"""How long a training step takes on N GPUs, from 1 to 512: ``python -m launch.scaling``.

Prints the tables of docs/scaling.md, which gives the source of every constant here and says what
follows, and draws docs/results/scaling.png. A model, not a measurement: everything is a function of
the constants below and of the networks as ``build_model`` makes them.

It is assumed that every collective of batch norm is waited for, since the next layer needs it, and
that nothing hides the all-reduce of the gradients: 94 % of them are those of the binary weights,
which kernels/weights.py makes all at once, last of all. The loader works beside the GPU.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from torch import nn

from launch.benchmark import RESULTS
from models import build_model
from models.layers import BinaryConv2d
from pipeline.log import logger

GPUS_PER_NODE = 8
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
IMAGENET = 1_281_167  # training images
FILE = 110e3  # bytes of an ImageNet file, on average
MEMORY = 3.0e12  # bytes/s of device copies on an H100, measured
PARAMETER_BYTES = 20  # fp32 SGD: reads weight, gradient and momentum, writes weight and momentum
BINARY_BYTES = 18  # per binary weight: kernels/weights.py in fp16, and gathering dsign
BUCKETS = (2**20, 25 * 2**20)  # bytes of DDP's first bucket, and of the others
LOCAL_SLACK, SLACK = 1.35, 2.0  # small collectives over NCCL's estimate: in one node, in several


@dataclass(frozen=True)
class Network:
    """What a step of it computes and sends."""

    norms: tuple[int, ...]  # channels of each synchronised batch norm
    parameters: int
    binary: int  # of them, those that are binarized
    image: float  # seconds per image, forward and backward: a roofline
    file: float = 0.0  # bytes of an image where it lies; 0: the whole set is on the device


@dataclass(frozen=True)
class Plan:
    """How the processes talk. The defaults are what the code does."""

    reductions: int = 0  # all-reduces of batch norm's forward pass; 0: one all-gather
    paired: int = 0  # batch norms whose collectives travel with another one's
    group: int = 0  # GPUs that share statistics; 0: all, 1: no synchronisation
    gradient_bytes: int = 4  # of a parameter's gradient on the wire
    overlap: bool = False  # the gradients travel while the backward pass computes
    extra: float = 0.0  # seconds of a step that do not depend on the batch, such as launches
    slower: float = 1.0  # a GPU's time per image over its roofline


@dataclass(frozen=True)
class Loader:
    """What feeds the GPUs."""

    decode: float = 7000.0  # images/s per GPU
    storage: float = 6.27e9  # bytes/s per node


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step, on ``gpus`` GPUs with ``batch`` images in all."""

    gpus: int
    batch: int
    compute: float
    norms: float
    gradients: float
    exposed: float  # of the gradients
    decode: float
    storage: float

    @property
    def device(self) -> float:
        """Without the loader."""
        return self.compute + self.norms + self.exposed

    @property
    def total(self) -> float:
        """With it."""
        return max(self.device, self.decode, self.storage)

    @property
    def bound(self) -> str:
        """What the step waits for most."""
        parts = {
            "compute": self.compute,
            "batch norm": self.norms,
            "gradients": self.exposed,
        }
        if self.total > self.device:
            parts = {"decoding": self.decode, "storage": self.storage}
        return max(parts, key=lambda name: parts[name])


class Fabric(Protocol):
    """Seconds of collectives among ``gpus`` processes."""

    def gather(self, bytes_: float, gpus: int) -> float:
        """All-gather of ``bytes_`` from each."""

    def reduce(self, bytes_: float, gpus: int) -> float:
        """All-reduce of a few ``bytes_``, over before another begins."""

    def reduce_gradients(self, bytes_: float, gpus: int) -> float:
        """All-reduce of many, a bucket after the other."""


@dataclass(frozen=True)
class Nccl:
    """NVLink inside of a node, InfiniBand between nodes, and NCCL's own estimate of latencies.

    Constants and formulas: NCCL 2.30.7, src/graph/tuning.cc, for Hopper; protocol LL for batch
    norm, NVLS (one node) and Tree/Simple for gradients. Bandwidths: docs/scaling.md.
    """

    local_slack: float = LOCAL_SLACK
    slack: float = SLACK
    overhead: float = 1e-6  # of posting to the network: Intel; AMD 2e-6
    intra: float = 480e9  # bytes/s of the bus, one node
    inter: float = 344e9  # the same, several nodes

    def gather(self, bytes_: float, gpus: int) -> float:
        """A ring: it passes every GPU, so its latency grows with their number."""
        nodes, _ = layout(gpus)
        hop = 0.6e-6 if nodes == 1 else max(0.6e-6, self.overhead)
        latency = 6.6e-6 + (gpus - nodes) * hop + (nodes - 1) * 2.7e-6
        return self._slack(nodes) * latency + gpus * bytes_ / _low_latency_bandwidth(nodes)

    def reduce(self, bytes_: float, gpus: int) -> float:
        """A tree, or in one node a ring: what is shorter."""
        nodes, local = layout(gpus)
        latency = 6.8e-6 + 2 * ((local - 1) * 0.6e-6 + int(math.log2(nodes)) * 5.0e-6)
        if nodes == 1:
            latency = min(latency, 6.6e-6 + 2 * (gpus - 1) * 0.6e-6)
        return self._slack(nodes) * latency + 2 * bytes_ / _low_latency_bandwidth(nodes)

    def _slack(self, nodes: int) -> float:
        return self.local_slack if nodes == 1 else self.slack

    def reduce_gradients(self, bytes_: float, gpus: int) -> float:
        """Bandwidth bound: each byte passes the bus 2 (N - 1) / N times."""
        nodes, local = layout(gpus)
        latency, bandwidth = 25e-6, self.intra
        if nodes > 1:
            bandwidth = self.inter
            latency = 8.4e-6 + 2 * ((local - 1) * 4.0e-6 + int(math.log2(nodes)) * 14e-6)
        return buckets(bytes_) * latency + 2 * (gpus - 1) / gpus * bytes_ / bandwidth


@dataclass(frozen=True)
class Symmetric(Nccl):
    """Inside of a node, small collectives from NCCL's symmetric memory in a captured CUDA graph."""

    def gather(self, bytes_: float, gpus: int) -> float:
        """Measured on 8 H100 for 2 to 4 KiB."""
        return 2.7e-6 if layout(gpus)[0] == 1 else super().gather(bytes_, gpus)

    def reduce(self, bytes_: float, gpus: int) -> float:
        """As a reduce-scatter, 2.8 us, and an all-gather."""
        return 5.5e-6 if layout(gpus)[0] == 1 else super().reduce(bytes_, gpus)


@dataclass(frozen=True)
class Measured:
    """Collectives whose times were measured, for one number of processes."""

    gather_seconds: float
    reduce_seconds: float
    one_value_seconds: float
    bandwidth: float  # bytes/s of a large all-reduce, by its size

    def gather(self, bytes_: float, gpus: int) -> float:
        """Latency alone: at most a few thousand bytes."""
        return self.gather_seconds

    def reduce(self, bytes_: float, gpus: int) -> float:
        """Latency alone."""
        return self.one_value_seconds if bytes_ <= 4 else self.reduce_seconds

    def reduce_gradients(self, bytes_: float, gpus: int) -> float:
        """Bandwidth alone."""
        return bytes_ / self.bandwidth


def layout(gpus: int) -> tuple[int, int]:
    """Nodes, and GPUs in each."""
    return math.ceil(gpus / GPUS_PER_NODE), min(gpus, GPUS_PER_NODE)


def _low_latency_bandwidth(nodes: int) -> float:
    """NCCL's limit of protocol LL: Hopper in one node, Intel hosts in 2 and in more nodes."""
    return {1: 141e9, 2: 39e9}.get(nodes, 20.4e9)


def buckets(bytes_: float) -> int:
    """Into how many all-reduces DDP cuts gradients."""
    first, other = BUCKETS
    return 1 + max(0, math.ceil((bytes_ - first) / other))


def norm_bytes(channels: int) -> int:
    """What a process says of one batch norm, each way: two sums per channel and a count, fp32."""
    return 4 * (2 * channels + 1)


def share(batch: int, gpus: int) -> int:
    """Images per GPU, as launch/train.py rounds them."""
    return max(1, round(batch / gpus))


def step(
    network: Network,
    gpus: int,
    batch: int,
    *,
    plan: Plan = Plan(),
    fabric: Fabric = Nccl(),
    loader: Loader = Loader(),
) -> Step:
    """A training step of ``batch`` images, rounded to a multiple of ``gpus``."""
    mine = share(batch, gpus)
    pixels = mine * network.image * plan.slower
    weights = (PARAMETER_BYTES * network.parameters + BINARY_BYTES * network.binary) / MEMORY
    norms, gradients = 0.0, 0.0
    if gpus > 1:
        norms = _norms(network, gpus, plan, fabric) + fabric.reduce(4, gpus)  # is the loss finite?
        sent = plan.gradient_bytes * network.parameters
        gradients = fabric.reduce_gradients(sent, gpus)
    hidden = min(gradients, 2 / 3 * pixels) if plan.overlap else 0.0  # backward: two of three convs
    nodes, local = layout(gpus)
    return Step(
        gpus=gpus,
        batch=mine * gpus,
        compute=pixels + weights + plan.extra,
        norms=norms,
        gradients=gradients,
        exposed=gradients - hidden,
        decode=mine / loader.decode if network.file else 0.0,
        storage=mine * local * network.file / loader.storage,
    )


def _norms(network: Network, gpus: int, plan: Plan, fabric: Fabric) -> float:
    group = min(plan.group or gpus, gpus)
    if group == 1:
        return 0.0
    seconds = []
    for channels in network.norms:
        bytes_ = norm_bytes(channels)
        reduce = fabric.reduce(bytes_, group)
        forward = plan.reductions * reduce or fabric.gather(bytes_, group)
        seconds.append(forward + reduce)
    return math.fsum(seconds) * (len(seconds) - plan.paired) / len(seconds)


@cache
def network(arch: str) -> Network:
    """``arch`` (resnet18, resnet34 or resnet20) in 1w1a, walked."""
    image, file = ROOFLINES[arch]
    model = build_model(arch, num_classes=1000 if file else 10)
    return Network(
        norms=tuple(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)),
        parameters=sum(p.numel() for p in model.parameters()),
        binary=sum(m.weight.numel() for m in model.modules() if isinstance(m, BinaryConv2d)),
        image=image,
        file=file,
    )


# Arithmetic plus memory traffic of an image, at 798 TFLOP/s and 3.0 TB/s; bytes where it lies.
ROOFLINES = {
    "resnet18": (13.6e-6 + 24.1e-6, FILE),
    "resnet34": (27.5e-6 + 38.7e-6, FILE),
    "resnet20": (0.3e-6 + 2.1e-6, 0.0),
}


def last_efficient(network: Network, batch: int, efficiency: float = 0.5) -> int:
    """The largest of ``COUNTS`` whose GPUs do at least ``efficiency`` of what one alone does."""
    alone = step(network, 1, batch).device
    fine = [n for n in COUNTS if speedup(step(network, n, batch), alone, batch) >= efficiency * n]
    return max(fine)


def fastest(network: Network, batch: int) -> int:
    """The one of ``COUNTS`` that trains most images a second."""
    return max(COUNTS, key=lambda n: rate(step(network, n, batch)))


def rate(step: Step) -> float:
    """Images/s of the device, the loader left out."""
    return step.batch / step.device


def speedup(step: Step, alone: float, batch: int) -> float:
    """Images/s over those of one GPU, which takes ``alone`` seconds for ``batch``."""
    return rate(step) / (batch / alone)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted() -> str:
    """What the networks send."""
    rows = []
    for arch in ROOFLINES:
        found = network(arch)
        sent = [norm_bytes(c) for c in found.norms]
        rows.append(
            [
                arch,
                str(len(sent)),
                f"{sum(found.norms):,}",
                f"{min(sent)} to {max(sent):,}",
                f"{found.parameters:,}",
                f"{found.binary / found.parameters:.0%}",
                f"{4 * found.parameters / 1e6:.1f} MB",
                str(buckets(4 * found.parameters)),
            ]
        )
    header = "network,batch norms,channels,bytes of each collective,parameters,binary"
    return table([*header.split(","), "gradients (fp32)", "buckets"], rows)


def steps(arch: str, batch: int) -> str:
    """Milliseconds of a step's parts, by number of GPUs."""
    chosen = network(arch)
    alone = step(chosen, 1, batch).device
    rows = []
    for gpus in COUNTS:
        s = step(chosen, gpus, batch)
        times = [s.compute, s.norms, s.exposed, s.device]
        row = [str(gpus), f"{s.batch:,}", str(s.batch // gpus), *(_ms(t) for t in times)]
        row += [f"{rate(s):,.0f}", f"{speedup(s, alone, batch) / gpus:.0%}"]
        if chosen.file:
            row += [_ms(s.decode), _ms(s.storage), f"{s.batch / s.total:,.0f}"]
        rows.append([*row, s.bound])
    header = "GPUs,batch,per GPU,compute ms,batch norm ms,gradients ms,step ms,images/s,efficiency"
    with_loader = ["decode ms", "storage ms", "images/s with loader"] if chosen.file else []
    return table([*header.split(","), *with_loader, "waits for"], rows)


LIMITS = {
    "resnet18": (750, 2048, 8192, 32768, 65536),
    "resnet34": (750, 8192),
    "resnet20": (256, 2048),
}


def limits() -> str:
    """Where each network stops scaling."""
    rows = []
    for arch, batches in LIMITS.items():
        for batch in batches:
            chosen = network(arch)
            last, most = last_efficient(chosen, batch), fastest(chosen, batch)
            best = step(chosen, most, batch)
            gain = speedup(best, step(chosen, 1, batch).device, batch)
            epoch = f"{IMAGENET / rate(best):.1f} s" if chosen.file else ""
            numbers = [f"{batch:,}", str(last), str(most), f"{gain:.1f}", f"{rate(best):,.0f}"]
            rows.append([arch, *numbers, epoch])
    header = (
        "network,batch,GPUs at 50 % efficiency,fastest at,times one GPU,images/s,an epoch takes"
    )
    return table(header.split(","), rows)


REMEDIES: dict[str, tuple[Plan, Fabric]] = {
    "as it is": (Plan(), Nccl()),
    "forward: two all-reduces, no all-gather": (Plan(reductions=2), Nccl()),
    "forward: one all-reduce of shifted sums": (Plan(reductions=1), Nccl()),
    "downsample's norms packed with their block's": (Plan(paired=3), Nccl()),
    "gradients overlap the backward pass": (Plan(overlap=True), Nccl()),
    "gradients in fp16": (Plan(gradient_bytes=2), Nccl()),
    "statistics within the node only": (Plan(group=8), Nccl()),
    "the same, from symmetric memory in a CUDA graph": (Plan(group=8), Symmetric()),
    "that, and gradients in fp16, overlapping": (
        Plan(group=8, gradient_bytes=2, overlap=True),
        Symmetric(),
    ),
    "batch norm not synchronised": (Plan(group=1), Nccl()),
}
PLACES = ((750, 8), (750, 64), (8192, 64), (8192, 512), (32768, 512))  # batch, GPUs


def remedies() -> str:
    """Milliseconds of a resnet18 step, with what could be done."""
    chosen = network("resnet18")
    rows = [
        [name, *(_ms(step(chosen, n, b, plan=plan, fabric=fabric).device) for b, n in PLACES)]
        for name, (plan, fabric) in REMEDIES.items()
    ]
    return table(["resnet18, ms a step", *(f"{b:,} on {n}" for b, n in PLACES)], rows)


ASSUMPTIONS: dict[str, tuple[Plan, Fabric]] = {
    "as in the tables": (Plan(), Nccl()),
    "small collectives as NCCL estimates them": (Plan(), Nccl(local_slack=1.0, slack=1.0)),
    "between nodes 5 times that (GPUDirect-TCPXO)": (Plan(), Nccl(slack=5.0)),
    "AMD hosts": (Plan(), Nccl(overhead=2e-6)),
    "half the bandwidth between nodes": (Plan(), Nccl(inter=172e9)),
    "GPU at half of its roofline": (Plan(slower=2.0), Nccl()),
    "GPU at a quarter of it": (Plan(slower=4.0), Nccl()),
    "1 ms more in every step (launches)": (Plan(extra=1e-3), Nccl()),
    "4 ms more": (Plan(extra=4e-3), Nccl()),
}


def sensitivity() -> str:
    """Times as fast as one GPU, under other assumptions."""
    chosen = network("resnet18")
    rows = []
    for name, (plan, fabric) in ASSUMPTIONS.items():
        row = [name]
        for batch, gpus in PLACES:
            alone = step(chosen, 1, batch, plan=plan, fabric=fabric).device
            there = step(chosen, gpus, batch, plan=plan, fabric=fabric)
            row.append(f"{speedup(there, alone, batch):.1f}")
        rows.append(row)
    return table(["resnet18, times one GPU", *(f"{b:,} on {n}" for b, n in PLACES)], rows)


LOADERS = {
    "hardware decoder, 7,000 images/s per GPU": 7000.0,
    "14 cores per GPU, 435 images/s each": 14 * 435.0,
    "14 cores per GPU, 224 px files, 530 each": 14 * 530.0,
}


def loading() -> str:
    """What the loaders allow, against what resnet18 needs at 8,192 images on 64 GPUs."""
    need = rate(step(network("resnet18"), 64, 8192)) / 64
    rows = [
        [name, f"{decode:,.0f}", f"{decode / need:.0%}", f"{8 * decode * FILE / 1e9:.1f}"]
        for name, decode in LOADERS.items()
    ]
    rows.append(["what the GPU needs", f"{need:,.0f}", "100%", f"{8 * need * FILE / 1e9:.1f}"])
    return table(["decoding", "images/s per GPU", "of the need", "GB/s per node of files"], rows)


def against_the_clock() -> str:
    """The model, fed with what two processes over gloo measured, against their steps."""
    with open(RESULTS / "collectives_cpu.csv", newline="") as file:
        found = list(csv.DictReader(file))
    rows = []
    for case in dict.fromkeys(row["case"] for row in found):
        name, shape, *_ = case.split("/")
        chosen = network(name.split("_")[1])
        gpus, images = map(int, shape.split("x"))
        for quantile in ("p20", "p50"):
            us = {r["mode"]: float(r[quantile]) * 1e-6 for r in found if r["case"] == case}
            fabric = Measured(
                us["norms_forward"] / len(chosen.norms),
                us["norms_backward"] / len(chosen.norms),
                us["one_value"],
                4 * chosen.parameters / us["gradients"],
            )
            local = us["step_local"] - us["one_value"]
            s = step(
                replace(chosen, image=local / images, file=0.0), gpus, gpus * images, fabric=fabric
            )
            apart = us["step_gradients"], s.device - _norms(chosen, gpus, Plan(), fabric)
            whole = us["step"], s.device
            row = [case, quantile, _ms(us["step_local"])]
            for measured, model in (apart, whole):
                row += [_ms(model), _ms(measured), f"{model / measured - 1:+.0%}"]
            rows.append(row)
    header = (
        "case,quantile,each for itself ms,gradients: model,measured,off,whole: model,measured,off"
    )
    return table(header.split(","), rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


TABLES = {
    "What the networks send": counted,
    "resnet18, batch 750": lambda: steps("resnet18", 750),
    "resnet18, batch 8,192": lambda: steps("resnet18", 8192),
    "resnet18, batch 32,768": lambda: steps("resnet18", 32768),
    "resnet20, batch 256": lambda: steps("resnet20", 256),
    "Where it stops": limits,
    "Remedies": remedies,
    "Sensitivity": sensitivity,
    "Loading": loading,
    "Against the clock": against_the_clock,
}


def draw() -> None:
    """Speed by number of GPUs, and the parts of a step."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is not installed")
        return
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arch, style in (("resnet18", "-"), ("resnet20", ":")):
        chosen = network(arch)
        for batch in LIMITS[arch]:
            alone = step(chosen, 1, batch).device
            gains = [speedup(step(chosen, n, batch), alone, batch) for n in COUNTS]
            left.plot(COUNTS, gains, style, marker=".", label=f"{arch}, batch {batch:,}")
    left.plot(COUNTS, COUNTS, color="black", linewidth=0.8, label="ideal")
    left.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="images/s, times one GPU")
    left.set(title="without the loader")
    left.set_xticks(COUNTS, [str(n) for n in COUNTS])
    left.legend(fontsize="small")
    found = [step(network("resnet18"), n, 8192) for n in COUNTS[4:]]
    at, below = range(len(found)), [0.0] * len(found)
    for part, label in (("compute", "compute"), ("norms", "batch norm"), ("exposed", "gradients")):
        values = [getattr(s, part) * 1e3 for s in found]
        right.bar(at, values, bottom=below, label=label)
        below = [a + b for a, b in zip(below, values, strict=True)]
    right.plot(at, [s.decode * 1e3 for s in found], "kx", label="decoding, beside them")
    right.set(xlabel="GPUs", ylabel="ms of a step", title="resnet18, batch 8,192")
    right.set_xticks(at, [str(s.gpus) for s in found])
    right.legend(fontsize="small")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "scaling.png", dpi=120, metadata={"Software": None})


def main() -> None:
    """Print the tables and draw the plot."""
    for title, make in TABLES.items():
        print(f"## {title}\n\n{make()}\n")
    draw()


if __name__ == "__main__":
    main()
