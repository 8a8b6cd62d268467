"""A checkpoint, ours or an official one, scored on validation images."""

from pathlib import Path
from typing import Any

from models import ARCHS, BinaryNetwork, build_model
from pipeline.data.open import build_eval_loader
from pipeline.run import checkpoint
from pipeline.run.config import Config, make_config
from pipeline.run.console import ProgressBar, logger, start_console
from pipeline.run.device import get_device
from pipeline.run.errors import Diverged, UserError
from pipeline.run.weights import (
    classes_of,
    first_not_finite,
    identify,
    is_ours,
    network_weights,
)
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
    processes stay joined; a caller leaves them by ``rendezvous.stop``. Raises UserError, or
    Diverged where a weight is not finite.
    """
    state = checkpoint.load(path)
    config = make_config(values_of(state), overrides, name="evaluation")
    device = get_device(config)
    start_console()
    seed_everything(config.seed, deterministic=config.deterministic)
    model = _network(config, state, path)
    model = to_device(model, config, device)
    loader = build_eval_loader(config, device)
    logger.info("%s: %s %s on %d images", path, model.arch, model.bits, loader.images)
    evaluation = Evaluation(model, loader, config, device)
    with ProgressBar("evaluation", len(loader)) as bar:
        return evaluation(lambda done: bar.advance())


def _network(config: Config, state: dict[str, Any], path: Path) -> BinaryNetwork:
    classes = config.model.num_classes
    # A network of that many classes is only built if the file holds a classifier of that size.
    if all(classes not in weight.shape[:1] for weight in network_weights(state).values()):
        known = classes_of(state)
        remedy = f"set model.num_classes={known}" if known else "take another"
        raise UserError(f"checkpoint {path} has no classifier of {classes} classes; {remedy}")
    model = build_model(config.model.arch, config.model.bits, classes)
    load_weights(model, state, path)
    if name := first_not_finite(model.state_dict()):
        raise Diverged(f"checkpoint {path}: {name} is not finite; take an earlier checkpoint")
    return model


def values_of(state: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint of ours but for ``PLACES``; one of the official code gives its
    network and its data set, and any other the number of its classes."""
    classes = classes_of(state)
    known = {"num_classes": classes} if classes else {}
    if is_ours(state):
        config = state.get("config")
        if not isinstance(config, dict):
            raise UserError("the checkpoint holds no config; take another")
        values = {section: _without_places(section, keys) for section, keys in config.items()}
        if isinstance(values.get("model"), dict):
            values["model"] |= known
        return values
    arch, bits = identify(state)
    if arch not in ARCHS:
        return {"model": known}  # not said: model.arch and model.bits must be given
    return {
        "model": {"arch": arch, "bits": bits, **known},
        "data": {"dataset": ARCHS[arch].dataset},
    }


def _without_places(section: str, values: Any) -> Any:
    if not isinstance(values, dict):
        return values  # make_config refuses it
    return {key: value for key, value in values.items() if key not in PLACES.get(section, ())}
