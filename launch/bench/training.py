"""Training, measured: steps alone, whole epochs with evaluation, and where the time of a step goes.

Providers: ours, the Trainer as ``./reste train`` runs it; official and compile, see
launch/bench/rivals.py; and with ``--official CHECKOUT`` official_code, the official code itself.
Nothing is timed before all networks agree in float64 and the first losses are alike. A network
that the official code does not have is timed by itself.

step: ours draws, augments and counts hits in it; the others get a batch that lies there. epoch:
training images a second over whole epochs with evaluation, and for ours with log lines and
checkpoints; ``--images`` of the data set, or of noise where ``data.path`` is unset. The time of a
full run is epochs x the measured epoch, and its row says ``extrapolated``. The breakdown is that of
launch/bench/breakdown.py; gaps are the rest of the step.

With distill.teacher, ours is timed once more, in cases that end in ``distilled``: there a network
of the teacher's form, with weights at random, is part of every step. teacher_share is its share of
the step's time. All other rows are without it.
"""

import dataclasses
import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from launch.bench import breakdown
from launch.bench.official import (
    build_official,
    has_official,
    load_official,
    make_exact,
    set_official_o,
)
from launch.bench.results import Row, device_name, row
from launch.bench.rivals import Compiled, Official, PlainConv2d, Splits
from launch.bench.timing import take_turns
from models import ARCHS, build_model
from pipeline.data.cifar_files import CifarSplit, load_cifar
from pipeline.data.loader import Batch, Loader, image_dtype
from pipeline.data.loader_resident import CifarLoader
from pipeline.data.open import DATASETS
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.recorder import JsonLines, Recorder
from pipeline.run.signals import StopSignal
from pipeline.train.metrics import cross_entropy
from pipeline.train.network import build_network
from pipeline.train.precision import AUTOCAST, autocast, to_device
from pipeline.train.trainer import Trainer

M = TypeVar("M")
Maker = Callable[[Config, torch.device, Splits, Path], Callable[[], None]]
CIFAR_IMAGES, CPU_IMAGES = 50_000, 1024  # of an epoch, by default
EPOCHS = 3  # timed, after one that is not
STEPS = {"cuda": 100, "cpu": 1}  # between two looks at the clock
# images/s of one H100 (3.0 TB/s of device copies, 798 TFLOP/s dense in bf16, both measured): the
# bytes that the fused design must move, about 35 for every element that a binary layer gives, plus
# the time of the multiplications.
ROOFLINE = {
    "resnet20": 413_000, "vgg_small": 108_000, "resnet18_cifar": 93_000,
    "resnet18": 26_500, "resnet34": 15_100,
}  # fmt: skip
ROOFLINE_SIDE = 224  # pixels of the images of the last two
ROOFLINE_DEVICE = "H100"
# Of the first losses in the precisions that are timed. Rounding flips signs: with fresh weights the
# same network in another memory format is 2 % off at 256 images, and 5 % at 4.
LOSS_TOLERANCE = 0.2


def measure(
    config: Config,
    device: torch.device,
    rounds: int,
    checkout: Path | None = None,
    images: int | None = None,
) -> list[Row]:
    """All rows of ``config``."""
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    if has_official(config.model.arch):
        check_agreement(config)
    rows, seconds = steps(config, device, rounds, checkout)
    if is_resident(config):
        rows += epochs(config, device, images)
    return rows + parts(config, device, seconds)  # last: graphs and a profiler do not mix


def check_agreement(config: Config) -> None:
    """Assert that all networks have the same loss in float64, to 1e-9."""
    arguments = config.network
    rivals = {
        "official": build_official(*arguments).double(),
        "compile": build_official(*arguments, PlainConv2d).double(),
    }
    ours = build_model(*arguments).double()
    make_exact(ours)
    ours.set_progress(2 / 3)  # o = 2
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4) % 2
    losses = {"ours": cross_entropy(ours(images), labels).item()}
    for name, rival in rivals.items():
        rival.load_state_dict(ours.state_dict())
        set_official_o(rival, torch.tensor(2.0, dtype=torch.float64))
        losses[name] = cross_entropy(rival(images), labels).item()
    spread = max(losses.values()) - min(losses.values())
    assert spread < 1e-9, f"the networks disagree, so nothing is timed: {losses}"


def is_resident(config: Config) -> bool:
    """Whether the images of the data set of ``config`` lie on the device."""
    return DATASETS[config.data.dataset].is_resident


def dtype_of(config: Config, device: torch.device) -> torch.dtype:
    """The dtype in which the loader of ``config`` gives images."""
    return image_dtype(config.train.precision, device, resident=is_resident(config))


class FixedBatch:
    """A ``Loader`` of one batch of noise, which lies on the device all the time."""

    classes: tuple[str, ...] = ()
    fingerprint = ""
    left = 0

    def __init__(self, config: Config, device: torch.device) -> None:
        self.images, classes = config.data.batch_size, config.network[2]
        side = config.data.size if ARCHS[config.model.arch].image_size > 32 else 32
        images = torch.randn(self.images, 3, side, side, dtype=dtype_of(config, device))
        labels = torch.randint(classes, (self.images,))
        layout = torch.channels_last
        self.batch = Batch(images.to(device, memory_format=layout), labels.to(device))

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch."""
        yield self.batch


def open_splits(config: Config, images: int) -> Splits:
    """The first ``images`` training images and a fifth as many test images, or noise."""
    counts = images, max(1, images // 5)
    if config.data.path is None:
        return _noise(counts[0]), _noise(counts[1])
    path, kind = Path(config.data.path), config.data.dataset
    train, test = (load_cifar(kind, path, split=name, download=False) for name in ("train", "test"))
    return _first(train, counts[0]), _first(test, counts[1])


def _noise(count: int) -> CifarSplit:
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    return CifarSplit(pixels, torch.randint(10, (count,)), tuple("0123456789"), "")


def _first(split: CifarSplit, count: int) -> CifarSplit:
    images, labels = split.images[:count], split.labels[:count]
    return dataclasses.replace(split, images=images, labels=labels)


def open_loaders(
    config: Config, device: torch.device, splits: Splits, dtype: torch.dtype
) -> tuple[CifarLoader, CifarLoader]:
    """The resident loaders of ``splits``."""
    data = config.data
    sizes = (data.batch_size, True), (data.eval_batch_size, False)
    train, test = (
        CifarLoader(split, batch_size=size, train=train, augment=data.augment,
                    seed=config.seed, dtype=dtype, device=device)
        for split, (size, train) in zip(splits, sizes, strict=True)
    )  # fmt: skip
    return train, test


def make_trainer(
    config: Config, device: torch.device, loaders: tuple[Loader, Loader], folder: Path
) -> Trainer:
    """Our training at o = 2, that writes into ``folder``; with ``distill.teacher``, one of its form
    is part of it."""
    model, teacher = build_network(config), None
    if config.distill.teacher:
        from pipeline.train.teacher import stand_in  # its torchvision takes seconds to import

        teacher = stand_in(config)
    store = CheckpointStore(folder, config.checkpoint.keep)
    recorder = Recorder()
    trainer = Trainer(config, model, loaders, device, store, StopSignal(), recorder, teacher)
    trainer.state.model.set_progress(2 / 3)
    trainer.state.model.train()
    return trainer


def variants(config: Config) -> dict[str, Config]:
    """How ours is timed: without a teacher, and with that of ``config``, if any."""
    if config.distill.teacher is None:
        return {"ours": config}
    plain = config.changed({"distill.teacher": None, "distill.teacher_weights": None})
    return {"ours": plain, "distilled": config}


def providers(config: Config, makers: Mapping[str, M]) -> Iterator[tuple[str, Config, M]]:
    """Who is timed: the rivals of ``makers`` where the official code has the network, and ours in
    each of its variants, with their configs."""
    for name, make in makers.items():
        if name == "ours":
            yield from ((each, own, make) for each, own in variants(config).items())
        elif has_official(config.model.arch):
            yield name, config, make


def rival_dtype(config: Config, device: torch.device) -> torch.dtype:
    """compile's precision: bf16 on a GPU; a CPU takes the config's, since few compute in bf16."""
    if device.type == "cuda":
        return torch.bfloat16
    return AUTOCAST.get(config.train.precision, torch.float32)


def place_of(
    config: Config, name: str, device: torch.device, mode: str, end: str = ""
) -> tuple[str, str, str]:
    """Case, provider and mode of rows; the case of what is ``distilled`` says so."""
    if name == "distilled":
        return f"{case(config, 'ours', device)}{end}/{name}", "ours", mode
    return f"{case(config, name, device)}{end}", name, mode


def case(config: Config, provider: str, device: torch.device) -> str:
    """<config>/<bits>/<batch>/<precision>."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    precision = {"ours": config.train.precision, "compile": names[rival_dtype(config, device)]}
    parts = [config.run.name, config.model.bits, config.data.batch_size]
    parts.append(precision.get(provider, "fp32"))
    return "/".join(map(str, parts))


def make_rivals(
    config: Config, device: torch.device, weights: Mapping[str, Tensor], checkout: Path | None
) -> dict[str, Callable[[], Tensor]]:
    """A training step of each on one batch of noise, from ``weights``; it returns the loss. There
    is none where the official code does not have the network."""
    arguments = config.network
    if not has_official(config.model.arch):
        return {}
    batch = FixedBatch(config, device).batch
    plain = batch._replace(images=batch.images.float().contiguous())
    models = {"official": build_official(*arguments)}
    if checkout:
        models["official_code"] = load_official(checkout, *arguments)
    network = build_official(*arguments, PlainConv2d)
    for model in (*models.values(), network):
        model.load_state_dict(weights)
    compiled = Compiled(network, device, rival_dtype(config, device))
    calls = {}
    for name, model in models.items():
        calls[name] = partial(_loss, Official(model, device), plain)
    return {**calls, "compile": partial(_loss, compiled, batch)}


def _loss(rival: Official | Compiled, batch: Batch) -> Tensor:
    return rival.step(batch)[1]


def steps(
    config: Config, device: torch.device, rounds: int, checkout: Path | None = None
) -> tuple[list[Row], float]:
    """images/s of training steps; and the seconds of one of ours."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: our_steps(each, device, Path(folder)) for name, each in variants(config).items()
        }
    network = trainers["ours"].state.model
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(config.seed)
    rivals = make_rivals(config, device, weights, checkout)
    losses = {name: _first_loss(call, name) for name, call in rivals.items()}
    torch.manual_seed(config.seed)
    losses["ours"] = _our_loss(config, device, weights, FixedBatch(config, device).batch)
    if rivals:
        check_losses({name: loss for name, loss in losses.items() if loss is not None})
    calls = {name: call for name, call in rivals.items() if losses[name] is not None}
    count, batch = STEPS[device.type], config.data.batch_size
    many = {
        name: partial(_times, count, call)
        for name, call in {**calls, **{k: repeat(each) for k, each in trainers.items()}}.items()
    }
    times = {name: t / count for name, t in take_turns(many, rounds, device).items()}
    rows = []
    for name, seconds in times.items():
        place = place_of(config, name, device, "step")
        rows.append(row(*place, "throughput", "images/s", batch / seconds))
        if name == "distilled":
            rows.append(row(*place, "teacher_share", "1", 1 - times["ours"].median() / seconds))
        if name == "ours":
            rows += share_of_roofline(config, device, place, batch / seconds)
    return rows, times["ours"].median().item()


def _times(count: int, call: Callable[[], object]) -> None:
    for _ in range(count):
        call()


def our_steps(config: Config, device: torch.device, folder: Path) -> Trainer:
    """Our training of whole steps: on resident noise for CIFAR, else on one fixed batch."""
    if not is_resident(config):
        loader = FixedBatch(config, device)
        return make_trainer(config, device, (loader, loader), folder)
    splits = _noise(STEPS["cuda"] * config.data.batch_size), _noise(config.data.eval_batch_size)
    loaders = open_loaders(config, device, splits, dtype_of(config, device))
    return make_trainer(config, device, loaders, folder)


def repeat(trainer: Trainer) -> Callable[[], object]:
    """A function that takes the next step of ``trainer``, through as many epochs as it takes."""
    steps = itertools.chain.from_iterable(trainer.stepper.epoch(0) for _ in itertools.count())

    def take_step() -> None:
        next(steps)

    return take_step


def _first_loss(call: Callable[[], Tensor], name: str) -> float | None:
    """The loss of a rival's first step; None, and a line, where it cannot take one."""
    try:
        return call().item()
    except Exception as error:  # torch.compile fails in many ways, such as for want of a compiler
        if name != "compile":
            raise
        logger.warning("compile is not measured: %s", str(error).splitlines()[0])
        return None


def _our_loss(
    config: Config, device: torch.device, weights: Mapping[str, Tensor], batch: Batch
) -> float:
    """The loss of our network on the rivals' batch, in the precision that is timed."""
    model = build_model(*config.network)
    model.load_state_dict(weights)
    model.set_progress(2 / 3)
    model = to_device(model, config, device)
    with torch.no_grad(), autocast(config, device):
        return cross_entropy(model(batch.images), batch.labels).item()


def check_losses(losses: Mapping[str, float]) -> None:
    """Assert that the first losses lie within LOSS_TOLERANCE of the official one."""
    expected = losses["official"]
    far = {k: v for k, v in losses.items() if not abs(v - expected) <= LOSS_TOLERANCE * expected}
    assert not far, f"the first losses differ, so nothing is timed: {losses}"


def share_of_roofline(
    config: Config, device: torch.device, place: tuple[str, str, str], rate: Tensor
) -> list[Row]:
    """``rate`` in units of the roofline, on the card that it is for."""
    roofline = ROOFLINE.get(config.model.arch)
    is_small = ARCHS[config.model.arch].image_size <= 32
    if roofline is None or not (is_small or config.data.size == ROOFLINE_SIDE):
        return []
    if ROOFLINE_DEVICE not in device_name(device):
        return []
    return [row(*place, "roofline_share", "1", rate / roofline)]


def parts(config: Config, device: torch.device, step: float) -> list[Row]:
    """Microseconds of one of our steps by group, of which there are ``step`` seconds in all."""
    with tempfile.TemporaryDirectory() as folder:
        eager = variants(config)["ours"].changed({"train.cuda_graph": "false"})
        trainer = our_steps(eager, device, Path(folder))
    spent = breakdown.groups(repeat(trainer), device)
    spent["gaps"] = max(0.0, step * 1e6 - sum(spent.values()))
    name = case(config, "ours", device)
    breakdown.plot(spent, f"train_{config.run.name}", name, device)
    return [
        row(f"{name}/{group}", "ours", "step", "time", "us", torch.tensor([t]).double())
        for group, t in spent.items()
    ]


def epochs(config: Config, device: torch.device, images: int | None = None) -> list[Row]:
    """images/s over whole epochs with evaluation, the time of a full run, and peak memory."""
    images = images or (CPU_IMAGES if device.type == "cpu" else CIFAR_IMAGES)
    splits = open_splits(config, images)
    images = len(splits[0].labels)
    rows = []
    end = "" if images == CIFAR_IMAGES else f"/{images}images"
    for name, own, make in providers(config, EPOCH_MAKERS):
        epoch = None  # with all that it holds
        before = reset_peak(device)
        with tempfile.TemporaryDirectory() as folder:
            try:
                epoch = make(own, device, splits, Path(folder))
                seconds = _time_epochs(epoch, device)
            except Exception as error:
                if name != "compile":
                    raise
                logger.warning("compile is not measured: %s", str(error).splitlines()[0])
                continue
        trained = images if name == "official" else images - images % config.data.batch_size
        place = place_of(config, name, device, "epoch", end)
        rows.append(row(*place, "throughput", "images/s", trained / seconds))
        if images == CIFAR_IMAGES:
            full = config.train.epochs * seconds
            rows.append(row(*place, "time_to_train_extrapolated", "s", full))
        if name == "ours":
            rows += share_of_roofline(config, device, place, trained / seconds)
        rows += peak(device, before, place)
    return rows


def reset_peak(device: torch.device) -> int:
    """Bytes in use, from which on the peak is measured."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device, before: int, place: tuple[str, str, str]) -> list[Row]:
    """The peak of the memory of a GPU, beyond what was in use ``before``."""
    if device.type != "cuda":
        return []
    used = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return [row(*place, "memory", "MiB", torch.tensor([used]).double())]


def _time_epochs(epoch: Callable[[], None], device: torch.device) -> Tensor:
    """Seconds of each of EPOCHS, after one that is not timed."""
    return take_turns({"": epoch}, EPOCHS, device, warmup=1)[""]


def _official_epochs(
    config: Config, device: torch.device, splits: Splits, folder: Path
) -> Callable[[], None]:
    model = build_official(*config.network)
    return Official(model, device).epochs(splits, config.data.batch_size, config.data.workers)


def _compile_epochs(
    config: Config, device: torch.device, splits: Splits, folder: Path
) -> Callable[[], None]:
    arguments = config.network
    dtype = rival_dtype(config, device)
    images = dtype if device.type == "cuda" else torch.float32
    rival = Compiled(build_official(*arguments, PlainConv2d), device, dtype)
    return rival.epochs(*open_loaders(config, device, splits, images))


def _our_epochs(
    config: Config, device: torch.device, splits: Splits, folder: Path
) -> Callable[[], None]:
    loaders = open_loaders(config, device, splits, dtype_of(config, device))
    trainer = make_trainer(config, device, loaders, folder)
    trainer.recorder.lines = JsonLines(folder / "metrics.jsonl")

    def epoch() -> None:
        trainer.run_epoch()

    return epoch


EPOCH_MAKERS: dict[str, Maker] = {
    "official": _official_epochs,
    "compile": _compile_epochs,
    "ours": _our_epochs,
}
