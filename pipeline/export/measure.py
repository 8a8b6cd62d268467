"""What smaller real weights cost: the accuracy with and without them, on the same images."""

from dataclasses import replace
from pathlib import Path

import torch

from models import BinaryNetwork
from pipeline.data.open import build_eval_loader
from pipeline.export.pack import unpack
from pipeline.export.packed import Packed
from pipeline.export.source import Source
from pipeline.run.console import logger
from pipeline.run.threads import take_threads
from pipeline.train.evaluation import Evaluation
from pipeline.train.scoring import arrange_classes

CPU = torch.device("cpu")


def measured(source: Source, shrunk: Packed, path: Path) -> Packed:
    """``shrunk`` with its accuracy on the validation images of ``source``, the network in ``path``,
    and a warning that says what it was before. Raises UserError where there are no images."""
    take_threads(source.config.train.threads)
    before = _score(source.network, source, path)
    after = _score(unpack(shrunk), source, path)
    logger.warning(
        "%s: top-1 %.2f instead of %.2f on %d images: real weights in front of a sign flip it "
        "where they are rounded",
        shrunk.about.real, after["top1"], before["top1"], after["images"],
    )  # fmt: skip
    accuracy = {name: after[name] for name in ("top1", "top5")}
    return Packed(replace(shrunk.about, accuracy=accuracy), shrunk.steps, shrunk.tensors)


def _score(network: BinaryNetwork, source: Source, path: Path) -> dict[str, float]:
    config = source.config.changed({"train.precision": "fp32", "train.device": "cpu"})
    loader = build_eval_loader(config, CPU)
    known = {"classes": source.packed.about.classes}
    state = network.state_dict()
    arrange_classes(network, known, loader.classes, path)
    found = Evaluation(network, loader, config, CPU)()
    network.load_state_dict(state)
    return found
