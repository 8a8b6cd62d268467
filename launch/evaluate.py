"""Evaluate a checkpoint, ours or an official one, on the validation images.

The last line printed is one JSON object with top1, top5, loss and images. A checkpoint of ours
brings its config, but for the places of files; of an official one the network is recognised.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.command import Parser, command
from models import ARCHS, build_model
from pipeline.data.open import build_eval_loader
from pipeline.run import checkpoint, processes, rendezvous
from pipeline.run.config import make_config
from pipeline.run.console import ProgressBar, logger, start_console
from pipeline.run.device import get_device
from pipeline.run.weights import CLASSIFIERS, identify, network_weights
from pipeline.train.evaluation import Evaluation
from pipeline.train.metrics import METRICS
from pipeline.train.network import load_weights
from pipeline.train.precision import to_device
from pipeline.train.randomness import seed_everything

PARSER = Parser(
    "evaluate",
    "CHECKPOINT [key=value ...]",
    __doc__ or "",
    (
        "runs/quickstart/checkpoints/best.pt",
        "runs/imagenet_resnet18/checkpoints/best.pt data.path=/path/to/imagenet",
    ),
)
PARSER.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that holds a network")
PARSER.add_overrides()
# A checkpoint may come from anybody: where files lie and what is fetched is not for it to say.
PLACES = {
    "run": ("dir", "name", "resume"),
    "data": ("path", "download", "exclude"),
    "model": ("weights",),
}


def main(arguments: Sequence[str]) -> None:
    """Evaluate the checkpoint in ``arguments`` on the validation images."""
    options = PARSER.parse(arguments)
    path = Path(options.checkpoint)
    state = checkpoint.load(path)
    config = make_config(values_of(state), options.overrides, name="evaluation")
    device = get_device(config)
    start_console()
    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(config.model.arch, config.model.bits, config.model.num_classes)
    load_weights(model, state, path)
    model = to_device(model, config, device)
    loader = build_eval_loader(config, device)
    logger.info("%s: %s %s on %d images", path, model.arch, model.bits, loader.images)
    evaluation = Evaluation(model, loader, config, device)
    with ProgressBar("evaluation", len(loader)) as bar:
        result = evaluation(lambda done: bar.advance())
    if processes.is_main():
        print(json.dumps({name: result[name] for name in (*METRICS, "images")}))
    rendezvous.stop()


def values_of(state: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint but for ``PLACES``; an official one gives its network and its
    data set."""
    if "config" in state:
        return {
            section: {k: v for k, v in values.items() if k not in PLACES.get(section, ())}
            if isinstance(values, dict)
            else values
            for section, values in dict(state["config"]).items()
        }
    arch, bits = identify(state)
    if arch not in ARCHS:
        return {}  # not said: model.arch and model.bits must be given
    weights = network_weights(state)
    classifier = next(w for k, w in weights.items() if k in CLASSIFIERS)
    model = {"arch": arch, "bits": bits, "num_classes": classifier.shape[0]}
    return {
        "model": model,
        "data": {"dataset": ARCHS[arch].dataset},
    }


if __name__ == "__main__":
    command(main)
