"""A checkpoint, ours or an official one, scored on validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import ARCHS, BinaryNetwork, build_model
from pipeline.data.open import build_eval_loader
from pipeline.run import checkpoint
from pipeline.run.classes import arrange, by_position, is_classifier, match, names_of
from pipeline.run.config import make_config
from pipeline.run.console import logger, start_console
from pipeline.run.device import get_device
from pipeline.run.weights import CLASSIFIERS, identify, network_weights
from pipeline.train.evaluation import Evaluation
from pipeline.train.network import load_weights
from pipeline.train.precision import to_device
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
    logger.info("%s: reading %s", path, config.data.path or config.data.dataset)
    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(*config.network)
    load_weights(model, state, path)
    loader = build_eval_loader(config, device)
    arrange_classes(model, state, loader.classes, path)
    model = to_device(model, config, device)
    logger.info("%s: %s %s on %d images", path, model.arch, model.bits, loader.images)
    return Evaluation(model, loader, config, device)()


def arrange_classes(
    model: BinaryNetwork, state: dict[str, Any], classes: Sequence[str], path: Path
) -> None:
    """Let the outputs of ``model``, loaded from ``state``, stand in the order of the ``classes`` of
    the data: by their names, or by position where the checkpoint has none.

    Raises UserError where the classes are not the same; a part of them is refused too.
    """
    names, weights = names_of(state), model.state_dict()
    outputs = next(len(value) for key, value in weights.items() if is_classifier(key))
    remedy = "set data.path to data with these class folders"
    order = match(names, outputs, classes, path, remedy)
    model.load_state_dict(arrange(weights, order))
    if names is None and (line := by_position(outputs, classes, path)):
        logger.warning(line)
    elif order != sorted(order):
        logger.info("%s has its classes in another order than the data: matched by name", path)


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
