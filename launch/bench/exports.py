"""What exports of a trained network change: top-1 and logits, beside those of ``evaluate --plain``.

Each export is written to a temporary folder and run in fp32 on all validation images, as
``predict`` runs it. One that needs a package which is missing, or cannot be made of the network,
has a row without figures.
"""

import datetime
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from launch.bench import results
from launch.bench.inference import NOT_MEASURED, versions
from native.build import NoLibrary
from native.engine import instruction_sets
from pipeline.data.loader import IGNORED, Batch
from pipeline.data.open import build_eval_loader
from pipeline.export.optional import load
from pipeline.export.output import Options
from pipeline.export.packed_file import read
from pipeline.export.predictor import Logits, in_torch, on_engine, open_predictor
from pipeline.export.program import Array
from pipeline.export.shrink import shrink
from pipeline.export.source import Source, open_source, packed_path
from pipeline.export.targets import save
from pipeline.run.classes import match
from pipeline.run.console import ProgressBar, logger, start_console
from pipeline.run.errors import UserError
from pipeline.run.threads import settle_threads
from pipeline.train.scoring import REMEDY

COLUMNS = (
    *("date", "commit", "versions", "network", "images", "export", "engine"),
    *("top1", "changed", "largest_difference", "bytes"),
)
PATH = results.RESULTS / "export_accuracy.csv"
CPU = torch.device("cpu")


@dataclass
class Run:
    """An export of ``size`` bytes on an engine, and what came of it over ``images`` images: those
    of the ``right`` class, those whose class ``changed``, and the ``largest`` difference of a
    logit. ``logits`` is None where it cannot be run."""

    export: str
    engine: str
    logits: Logits | None
    size: int = 0
    images: int = 0
    right: int = 0
    changed: int = 0
    largest: float = 0.0

    def add(self, images: Array, expected: Array, outputs: Array) -> None:
        """Count a batch, whose logits are to be ``expected``, and whose classes are ``outputs``."""
        if self.logits is None:
            return
        found = self.logits(images)
        top = found.argmax(1)
        self.images += len(images)
        self.right += int((top == outputs).sum())
        self.changed += int((top != expected.argmax(1)).sum())
        self.largest = float(np.maximum(self.largest, abs(found - expected).max()))  # NaN stays

    def row(self) -> results.Row:
        """Its row of the table."""
        named: results.Row = {"export": self.export, "engine": self.engine}
        if self.logits is None:
            return {**named, "top1": NOT_MEASURED}
        figures = {"top1": f"{100 * self.right / self.images:.2f}", "changed": self.changed}
        largest = f"{self.largest:.1e}" if self.largest else "0"
        sizes = {"images": self.images, "largest_difference": largest, "bytes": self.size}
        return {**named, **figures, **sizes}


def measure(path: Path, overrides: Sequence[str]) -> list[results.Row]:
    """The rows of the network in ``path``, of which the first is its own; ``overrides`` are
    key=value, as ``launch.evaluate`` takes them."""
    start_console()
    source = open_source(path, overrides)
    config = settle_threads(source.config, looks=False)
    config = config.changed({"train.precision": "fp32", "train.device": "cpu"})
    loader = build_eval_loader(config, CPU)
    about, plain = source.packed.about, in_torch(source.network)
    order = match(about.classes, source.packed.num_classes, loader.classes, path, REMEDY)
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run("none", "torch", plain, packed_path(path).stat().st_size)]
        runs += _exports(source, Path(folder))
        with ProgressBar("comparison", len(loader), images=config.data.eval_batch_size) as bar:
            for images, outputs in (_arrays(batch, order) for batch in loader.epoch(0)):
                expected = plain(images)
                for run in runs:
                    run.add(images, expected, outputs)
                bar.advance()
    return [{"network": about.arch, **run.row()} for run in runs]


def _arrays(batch: Batch, order: Sequence[int]) -> tuple[Array, Array]:
    """The images of a batch, and for each the output of the network that stands for its class;
    ``order`` has one for each class of the data."""
    known = batch.labels != IGNORED
    images = batch.images[known].contiguous().numpy()
    return images, np.array(order)[batch.labels[known].numpy()]


def _exports(source: Source, folder: Path) -> Iterator[Run]:
    """What is compared: exports that are written to ``folder``, and opened."""
    runs: tuple[tuple[str, str, str, Callable[[Path], Logits | None]], ...] = (
        ("packed", "float32", "torch", _in_torch),
        ("packed", "float32", _engine(), lambda path: on_engine(read(path))),
        ("packed", "classifier16", "torch", _in_torch),
        ("packed", "float16", "torch", _in_torch),
        ("packed", "int8", "torch", _in_torch),
        ("onnx", "float32", "onnxruntime, optimizations off", _as_it_stands),
        ("onnx", "float32", "onnxruntime", _as_predicted),
        ("openvino", "float32", "openvino", _as_predicted),
    )
    for number, (kind, real, engine, opens) in enumerate(runs):
        place, logits = folder / f"{number}" / "model", None
        try:
            logits = opens(save(kind, shrink(source.packed, real), place, Options()))
        except UserError as error:
            logger.info("%s on %s is left out: %s", kind, engine, error)
        size = sum(file.stat().st_size for file in place.parent.glob("*"))
        name = kind if real == "float32" else f"{kind} --real {real}"
        yield Run(name, engine, logits, size)


def _engine() -> str:
    """The engine of native/ with the instruction set that it takes."""
    try:
        return f"engine {instruction_sets()[0]}"
    except NoLibrary:
        return "engine"


def _in_torch(path: Path) -> Logits:
    return in_torch(open_source(path, ()).network)


def _as_predicted(path: Path) -> Logits:
    return open_predictor(path, ()).logits


def _as_it_stands(path: Path) -> Logits:
    """The ONNX graph ``path``, which onnxruntime does not change."""
    opened = load("pipeline.export.run_onnx:open_onnx", "a .onnx file", ("onnxruntime",))
    logits: Logits = opened(path, torch.get_num_threads(), optimizes=False)[2]
    return logits


def report(rows: Sequence[results.Row], commit: str) -> None:
    """Print ``rows`` and append them to ``PATH``."""
    common: results.Row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "versions": versions(),
    }
    results.append(PATH, COLUMNS, ({**common, **each} for each in rows))
    for each in rows:
        print("  ".join(str(each.get(name, "")) for name in COLUMNS[3:]))
