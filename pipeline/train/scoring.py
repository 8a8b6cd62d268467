"""A checkpoint, ours or an official one, scored on validation images."""

from pathlib import Path
from typing import Any

from models import ARCHS, build_model
from pipeline.data.open import build_eval_loader
from pipeline.run import checkpoint
from pipeline.run.config import make_config
from pipeline.run.console import ProgressBar, logger, start_console
from pipeline.run.device import get_device
from pipeline.run.weights import CLASSIFIERS, identify, network_weights
from pipeline.train.evaluation import Evaluation
from pipeline.train.network import load_weights
from pipeline.train.precision import settle_evaluation, to_device
from pipeline.train.randomness import seed_everything

# A checkpoint may come from anybody: where files lie and what is fetched is not for it to say.
PLACES = {
    "run": ("dir", "name", "resume"),
    "data": ("path", "download", "exclude"),
    "model": ("weights",),
}


def score(path: Path, overrides: list[str]) -> dict[str, float]:
    """Every metric by its name, and ``images``, of the network in the checkpoint ``path``.

    A checkpoint of ours brings its config, but for ``PLACES``; ``overrides`` are key=value. The
    processes stay joined; a caller leaves them by ``rendezvous.stop``.
    """
    state = checkpoint.load(path)
    config = make_config(values_of(state), overrides, name="evaluation")
    device = get_device(config)
    start_console()
    config = settle_evaluation(config, device, overrides)
    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(config.model.arch, config.model.bits, config.model.num_classes)
    load_weights(model, state, path)
    model = to_device(model, config, device)
    loader = build_eval_loader(config, device)
    logger.info("%s: %s %s on %d images", path, model.arch, model.bits, loader.images)
    evaluation = Evaluation(model, loader, config, device)
    with ProgressBar("evaluation", len(loader)) as bar:
        return evaluation(lambda done: bar.advance())


def values_of(state: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint but for ``PLACES``; an official one gives its network and its
    data set."""
    if "config" in state:
        config = state["config"]
        if not isinstance(config, dict):
            return config  # make_config refuses it
        return {
            section: {k: v for k, v in values.items() if k not in PLACES.get(section, ())}
            if isinstance(values, dict)
            else values
            for section, values in config.items()
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
