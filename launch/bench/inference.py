"""How long processors take for a network of ±1, and for the same network with real weights.

Providers: ``engine`` (native/engine.py, on each vector instruction set that the processor has),
``evaluation`` (the network in torch), and the network with real weights: ``torch`` frozen,
``onnxruntime`` and ``openvino`` in fp32 and int8; and ``openvino 1bit``, the graph that export
writes. What is not installed has a row without figures. All take turns in one process, on random
weights and images. ``cpu_ms`` is the least time of the processor in all threads: other programs on
the machine cost less of it than of the clock's.
"""

import datetime
import importlib
import importlib.metadata
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from launch.bench import peers, results
from launch.bench.plain import PlainNetwork
from launch.bench.timing import take_turns
from models import ARCHS, BinaryNetwork, build_model
from native.build import NoLibrary
from native.engine import Engine, instruction_sets
from pipeline.export.engine import UNNAMED
from pipeline.export.fuse import fused
from pipeline.export.output import Options
from pipeline.export.pack import pack
from pipeline.export.packed import Packed
from pipeline.export.program import Array
from pipeline.export.targets import TARGETS
from pipeline.run.config import Config
from pipeline.run.errors import UserError

Call = Callable[[Array], Array]
COLUMNS = (
    *("date", "commit", "machine", "versions", "network", "side", "batch", "threads"),
    *("provider", "p50_ms", "min_ms", "cpu_ms"),
)
BATCHES = {1: 1, 64: 16}  # and what the rounds are divided by
THREADS = (1, 2)
PATH = results.RESULTS / "inference_cpu.csv"
NOT_MEASURED = "not measured"
CPU = torch.device("cpu")
TOLERANCE = 1e-3  # of the spread of the logits, between engines that compute the same in fp32


class Provider(NamedTuple):
    """``make`` gives, for a number of threads, what is timed; it raises ImportError, or UserError,
    where a package is missing.

    ``like``: the provider that it must agree with; none for int8 and 1bit.
    """

    name: str
    make: Callable[[int], Call]
    like: str = ""


def measure(config: Config, rounds: int) -> list[results.Row]:
    """The rows of all providers, batches and numbers of threads. Raises UserError where the engine
    cannot be built."""
    try:
        instruction_sets()
    except NoLibrary as error:
        raise UserError(str(error)) from None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        everybody = [*providers(config, Path(folder))]
        side = ARCHS[config.model.arch].image_size
        for threads in THREADS:
            torch.set_num_threads(threads)
            calls, absent = _calls(everybody, threads)
            for batch, divisor in BATCHES.items():
                images = np.random.default_rng(0).standard_normal(
                    (batch, 3, side, side), np.float32
                )
                _check(everybody, calls, images[:1])
                turns = {name: _Billed(partial(call, images)) for name, call in calls.items()}
                taken = take_turns(turns, max(2, rounds // divisor), CPU, warmup=1)
                case = {"network": config.model.arch, "side": side, "batch": batch}
                case |= {"threads": threads}
                rows += [{**case, **_figures(n, s, turns[n].seconds)} for n, s in taken.items()]
                rows += [{**case, "provider": name, "p50_ms": NOT_MEASURED} for name in absent]
    return rows


class _Billed:
    """A call that notes in ``seconds`` what time of the processor each of its turns takes."""

    def __init__(self, call: Callable[[], Array]) -> None:
        self.call, self.seconds = call, list[float]()

    def __call__(self) -> None:
        began = time.process_time()
        self.call()
        self.seconds.append(time.process_time() - began)


def _figures(provider: str, seconds: Tensor, billed: list[float]) -> results.Row:
    p50, least = seconds.median().item(), seconds.min().item()
    figures = {"p50_ms": p50, "min_ms": least, "cpu_ms": min(billed)}
    return {"provider": provider, **{n: f"{1e3 * each:.3f}" for n, each in figures.items()}}


def _calls(everybody: list[Provider], threads: int) -> tuple[dict[str, Call], list[str]]:
    """What is timed by name, and the names of what is not installed."""
    calls, absent = {}, []
    for provider in everybody:
        try:
            calls[provider.name] = provider.make(threads)
        except (ImportError, UserError):
            absent.append(provider.name)
    return calls, absent


def _check(everybody: list[Provider], calls: dict[str, Call], images: Array) -> None:
    """Raise AssertionError where providers that must agree do not: what is wrong gets no time."""
    found = {name: call(images) for name, call in calls.items()}
    for name, _, like in everybody:
        if name in found and like in found:
            allowed = TOLERANCE * float(found[like].std())
            off = float(abs(found[name] - found[like]).max())
            assert off <= allowed, f"{name} is {off} off {like}; {allowed} is allowed"


def providers(config: Config, folder: Path) -> Iterator[Provider]:
    """All of them; files go to ``folder``."""
    arch, _, classes = config.network
    binary, real = _network(arch, "1w1a", classes), _network(arch, "32w32a", classes)
    side = ARCHS[arch].image_size
    sized = replace(UNNAMED, images=replace(UNNAMED.images, size=side, resize=side))
    packed, plain = pack(binary, sized), PlainNetwork(pack(real, UNNAMED)).eval()
    yield Provider("evaluation", lambda threads: partial(_in_torch, binary))
    for name in [each for each in instruction_sets() if each != "portable"]:
        yield Provider(f"engine {name}", partial(_on_engine, binary, name), "evaluation")
    images = _images(1, 8, side)
    frozen = _frozen(plain, images[:1])
    yield Provider("torch fp32", lambda threads: partial(_in_torch, frozen))
    files = _Files(plain, packed, images, folder)
    for name, peer in {"onnxruntime": peers.onnxruntime, "openvino": peers.openvino}.items():
        yield Provider(f"{name} fp32", partial(_on_file, peer, files.real), "torch fp32")
        yield Provider(f"{name} int8", partial(_on_file, peer, files.int8))
    yield Provider("openvino 1bit", partial(_on_file, peers.openvino, files.one_bit))


def _on_file(peer: Callable[[Path, int], Call], file: Callable[[], Path], threads: int) -> Call:
    return peer(file(), threads)


def _images(seed: int, count: int, side: int) -> Array:
    shape = count, 3, side, side
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _network(arch: str, bits: str, classes: int) -> BinaryNetwork:
    """A network with random weights, whose batch norms have seen random images."""
    torch.manual_seed(0)
    network = build_model(arch, bits, classes)
    for norm in (each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    side = ARCHS[arch].image_size
    with torch.no_grad():
        network.train()(torch.randn(4, 3, side, side))
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def _in_torch(network: torch.nn.Module, images: Array) -> Array:
    batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return network(batch).numpy()


def _on_engine(network: BinaryNetwork, instructions: str, threads: int) -> Call:
    """The scales are summed by as many threads as evaluation has: their last bit depends on it."""
    engine = Engine(fused(pack(network, UNNAMED)), instructions=instructions)
    return lambda images: engine(images, threads)


def _frozen(plain: PlainNetwork, images: Array) -> torch.nn.Module:
    """``plain`` as torch freezes and folds it for inference."""
    example = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that torch.compile is to take its place
        return torch.jit.freeze(torch.jit.trace(plain, example))


class _Files:
    """The files that peers read, each written when it is first asked for."""

    def __init__(self, plain: PlainNetwork, packed: Packed, images: Array, folder: Path) -> None:
        self.plain, self.packed, self.images, self.folder = plain, packed, images, folder

    def real(self) -> Path:
        path = self.folder / "real.onnx"
        if not path.exists():
            peers.write_onnx(self.plain, self.images[:1], path)
        return path

    def int8(self) -> Path:
        path = self.folder / "int8.onnx"
        if not path.exists():
            peers.quantize(self.real(), self.images, path)
        return path

    def one_bit(self) -> Path:
        """Raises ImportError as long as export writes no such graph, too."""
        path = self.folder / "one_bit.xml"
        if not path.exists():
            for suffix, content in _target("openvino")(self.packed, Options()).items():
                path.with_suffix(suffix).write_bytes(content)
        return path


def _target(kind: str) -> Callable[..., dict[str, bytes]]:
    if kind not in TARGETS:
        raise ImportError(f"export has no {kind}")
    maker = TARGETS[kind].maker
    if not isinstance(maker, str):
        return maker
    module, _, name = maker.partition(":")
    return getattr(importlib.import_module(module), name)


def write(rows: list[results.Row], commit: str) -> None:
    """Print ``rows``, append them to ``PATH``, and draw those of one image on one thread."""
    common: results.Row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": machine(),
        "versions": versions(),
    }
    results.append(PATH, COLUMNS, ({**common, **each} for each in rows))
    for each in rows:
        print("  ".join(str(each.get(name, "")) for name in COLUMNS[4:]))
    _plot([row for row in rows if (row["batch"], row["threads"]) == (1, 1) and "min_ms" in row])


def machine() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{(names or [platform.machine()])[0]}, {len(names) or 1} cores, " + instruction_sets()[0]
    )


def versions() -> str:
    """Those of the packages that are compared, where they are installed."""
    found = []
    for package in ("torch", *peers.PACKAGES):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _plot(rows: list[results.Row]) -> None:
    if not rows or (figure := results.new_figure(8, 1.2 + 0.35 * len(rows))) is None:
        return
    rows = sorted(rows, key=lambda row: float(str(row["min_ms"])))
    axes = figure.subplots()
    bars = axes.barh(
        [str(row["provider"]) for row in rows], [float(str(row["min_ms"])) for row in rows]
    )
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel("ms an image, least of all turns")
    axes.set_title(f"{rows[0]['network']} at {rows[0]['side']} px, one image, one thread")
    results.save(figure, PATH.with_suffix(".png"))
