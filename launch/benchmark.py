"""Measure kernels, training and loading side by side with others.

What is measured is printed as a table and appended to docs/results/<bench>_<device>.csv.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.command import Main, Parser, choose, command, find_config, whole


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that ``arguments`` name."""
    choices = {name: (parser.summary, _main(name)) for name, parser in PARSERS.items()}
    choose("benchmark", __doc__ or "", choices, arguments)


def _main(name: str) -> Main:
    return lambda arguments: _measure(name, PARSERS[name].parse(arguments))


def _measure(name: str, options: argparse.Namespace) -> None:
    from launch.bench import (
        collectives,
        exports,
        inference,
        kernels,
        loaders,
        official_run,
        preparing,
        results,
        road,
        scaling,
        starts,
        sweep,
        training,
    )
    from pipeline.run import origin, processes, rendezvous
    from pipeline.run.config import load_config
    from pipeline.run.device import get_device
    from pipeline.train.precision import settle_precision

    if name == "scaling":
        return scaling.report()
    commit = origin.commit()  # first: what is measured, not the plots that it draws
    if name == "export":
        return exports.report(exports.measure(options.checkpoint, options.overrides), commit)
    path = find_config(options.config)
    config = load_config(path, options.overrides)
    if name == "inference":
        return inference.write(inference.measure(config, options.rounds), commit)
    if name == "official":
        official_run.train(config, options.official)
        return
    device = get_device(config)
    config = settle_precision(config, device)
    rows: list[results.Row] = []
    if name == "kernels":
        rows = kernels.benchmark(config, device, options.batch)
    elif name == "loader":
        measured = sweep.sweep if options.sweep else loaders.measure
        rows = measured(config, device, options.rounds)
    elif name == "prepare":
        rows = preparing.measure(config, options.rounds, options.images)
    elif name == "collectives":
        rows = collectives.measure(config, device, options.rounds)
    else:
        # A real run would fetch its teacher first.
        untaught = ["distill.teacher=null", "distill.teacher_weights=null"]
        start = partial(starts.starts, str(path), [*options.overrides, *untaught], config)
        # First what starts runs: a child's peak is at least this process's so far.
        if config.data.path is not None and training.is_resident(config):
            rows = start()
        elif config.data.path is not None:
            rows = road.measure(config, device, options.rounds, options.images, start)
        rows += training.measure(config, device, options.rounds, options.official, options.images)
    if processes.is_main():
        results.write(name, rows, device, commit)
    if name == "loader" and options.sweep:
        print(f"the fastest: {sweep.overrides(rows)}")
    if name == "collectives" and processes.is_main() and config.model.arch in scaling.MOVED:
        print(collectives.against_the_model(config.model.arch, rows))
    rendezvous.stop()


def _parser(
    name: str, options: str, about: str, examples: Sequence[str], rounds: int | None = None
) -> Parser:
    """``rounds``: the default of an option --rounds, if there is one."""
    parser = Parser(f"benchmark {name}", f"CONFIG [key=value ...] {options}", about, examples)
    parser.add_config()
    if rounds is not None:
        parser.add_argument(
            "--rounds", metavar="N", type=whole(1), default=rounds,
            help="timed turns of each (%(default)s)",
        )  # fmt: skip
    return parser


KERNELS = _parser(
    "kernels",
    "[--batch N]",
    """Time the ops, the blocks between two convolutions, and the convolutions.

    Of the config only train.device and train.precision matter (fp32 is taken for fp16 on a GPU).
    Also draws docs/results/kernels_<device>.png.
    """,
    ("imagenet_resnet18", "imagenet_resnet18 train.device=cpu --batch 4"),
)
KERNELS.add_argument(
    "--batch", metavar="N", type=whole(1), help="images (as many as are usually trained)"
)
TRAIN = _parser(
    "train",
    "[--rounds N] [--images N] [--official CHECKOUT]",
    """Time training steps and whole epochs, and show where the time of a step goes.

    With distill.teacher, training is timed without that teacher and with a network of its form.
    Also draws docs/results/train_<config>_<device>.png. Where data.path is set, a real run is
    started too: the seconds to its first step, and the memory that it takes. Of ImageNet's networks
    the whole road is measured then, from image files to trained batches: data.path names a tree, or
    a folder of classes, whose images are taken as often as need be, as they are, resized and in
    shards (in a temporary folder, see TMPDIR).
    """,
    (
        "cifar10_resnet20 data.path=/path/to/cifar10",
        "imagenet_resnet18 data.path=/path/to/images",
        "cifar10_resnet20 train.device=cpu --images 1024",
    ),
    rounds=10,
)
TRAIN.add_argument("--images", metavar="N", type=whole(1), help="images of an epoch (all)")
TRAIN.add_argument(
    "--official", metavar="CHECKOUT", type=Path, help="the official code, which is timed as well"
)
OFFICIAL = _parser(
    "official",
    "--official CHECKOUT",
    """Train by the official code itself, as a run that compare shows beside ours.

    Its main.py trains on CIFAR-10 with the flags that say what the config says, on a CPU too.
    """,
    ("cifar10_resnet20 --official /path/to/ReSTE data.path=/path/to/cifar10 run.name=official",),
)
OFFICIAL.add_argument(
    "--official", metavar="CHECKOUT", type=Path, required=True, help="the official code"
)
LOADER = _parser(
    "loader",
    "[--rounds N] [--sweep]",
    """Time how training batches are loaded by torchvision and by DALI.

    data.path names the image tree.
    """,
    (
        "imagenet_resnet18 data.path=/path/to/imagenet",
        "imagenet_resnet18 data.path=/path/to/imagenet --sweep",
    ),
    rounds=10,
)
LOADER.add_argument(
    "--sweep", action="store_true",
    help="instead, try data.workers and, on a GPU, data.hw_decoder_load of DALI; the last line "
    "holds the fastest ones, to be pasted",
)  # fmt: skip
INFERENCE = _parser(
    "inference",
    "[--rounds N]",
    """Time one and 64 images on the processor: the engine, torch, and engines of others.

    Of the config only the network matters. docs/results/inference_cpu.csv takes the figures, and
    its plot shows one image on one thread. onnxruntime and OpenVINO take part where they are
    installed.
    """,
    ("imagenet_resnet18", "cifar10_resnet20 --rounds 200"),
    rounds=40,
)
EXPORT = Parser(
    "benchmark export",
    "CHECKPOINT [key=value ...]",
    """Compare what each export of a network predicts with what the network itself does.

    All validation images are taken. docs/results/export_accuracy.csv takes the top-1 of each, how
    many images it takes for another class, and the largest difference of a logit.
    """,
    ("runs/cifar10_resnet20/checkpoints/best.pt data.path=/path/to/cifar10",),
)
EXPORT.add_argument(
    "checkpoint", metavar="CHECKPOINT", type=Path, help="a file that holds a network"
)
EXPORT.add_overrides()
PREPARE = _parser(
    "prepare",
    "[--rounds N] [--images N]",
    """Time how many images a core resizes, and packs into shards.

    data.path names a tree, or a folder of classes. What is made lies in a temporary folder.
    """,
    ("imagenet_resnet18 data.path=/path/to/images train.device=cpu",),
    rounds=3,
)
PREPARE.add_argument("--images", metavar="N", type=whole(1), help="how many (those that are there)")
COLLECTIVES = _parser(
    "collectives",
    "[--rounds N]",
    """Time what it costs several processes to train as one.

    Several processes measure it, which torchrun starts: docs/scaling.md shows how. data.batch_size
    is that of all processes.
    """,
    (),
    rounds=50,
)
SCALING = Parser(
    "benchmark scaling",
    "",
    """Print the tables of docs/scaling.md: how long a training step takes on N GPUs.

    A model, which measures nothing. Also draws docs/results/scaling.png.
    """,
    ("",),
)
PARSERS = {
    "kernels": KERNELS,
    "train": TRAIN,
    "official": OFFICIAL,
    "loader": LOADER,
    "inference": INFERENCE,
    "export": EXPORT,
    "prepare": PREPARE,
    "collectives": COLLECTIVES,
    "scaling": SCALING,
}


if __name__ == "__main__":
    command(main)
