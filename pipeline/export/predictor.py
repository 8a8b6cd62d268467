"""Any file that holds a network, as what gives logits for images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models import BinaryNetwork
from native.build import NoLibrary
from native.engine import Engine
from pipeline.export.fuse import fused
from pipeline.export.optional import load
from pipeline.export.packed import About, Packed
from pipeline.export.program import Array
from pipeline.export.source import open_source
from pipeline.run.classes import CIFAR10
from pipeline.run.console import logger
from pipeline.run.threads import choose, take_threads

Logits = Callable[[Array], Array]  # of images (N, 3, H, W), both float32


@dataclass(frozen=True)
class Predictor:
    """A network ready to run. ``logits`` takes (N, 3, size, size) float32, prepared as ``about``
    says, and gives (N, ``num_classes``) float32."""

    about: About
    num_classes: int
    logits: Logits

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, those that everybody knows included; None where there are
        none."""
        if self.about.classes is None and self.about.dataset == "cifar10":
            return tuple(CIFAR10) if self.num_classes == len(CIFAR10) else None
        return self.about.classes


# What opens a file by its ending, "module:name", and the package that this takes.
OPENERS = {
    ".onnx": ("pipeline.export.run_onnx:open_onnx", "onnxruntime"),
    ".xml": ("pipeline.export.run_openvino:open_openvino", "openvino"),
}


def open_predictor(path: Path, overrides: Sequence[str]) -> Predictor:
    """The network in ``path``: a checkpoint, a packed file, a folder of Hugging Face's layout, or
    what ``OPENERS`` lists.

    ``overrides`` are key=value over the config of a checkpoint. Cores that other programs keep busy
    are left to them: a thread that waits for one stops all others at each of many small operators.
    Raises UserError where the file is none of these, is damaged, or takes a package that is
    missing.
    """
    if path.suffix in OPENERS:
        entry, package = OPENERS[path.suffix]
        open_ = load(entry, f"a {path.suffix} file", (package,))
        return Predictor(*open_(path, choose(None).threads))
    source = open_source(path, overrides)
    take_threads(source.config.train.threads)
    logits = on_engine(source.packed) or in_torch(source.network)
    return Predictor(source.packed.about, source.packed.num_classes, logits)


def on_engine(packed: Packed) -> Logits | None:
    """The ``logits`` of a network on the engine of native/; None where torch has to run it."""
    try:
        engine = Engine(fused(packed))
        side = packed.about.images.size
        engine(np.zeros((0, 3, side, side), np.float32))  # no image: it lays out its plan alone
    except (NoLibrary, ValueError) as error:
        logger.info("run by torch, since the engine of native/ cannot: %s", error)
        return None
    if engine.instructions == "portable":
        return None  # torch knows the processor better
    return lambda images: engine(images, torch.get_num_threads())


def in_torch(network: BinaryNetwork) -> Logits:
    """The ``logits`` of a network of torch, on the CPU and in float32."""

    @torch.inference_mode()
    def logits(images: Array) -> Array:
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return network(batch).numpy()

    return logits
