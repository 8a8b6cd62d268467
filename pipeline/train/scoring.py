"""A checkpoint, ours or an official one, scored on validation images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import ARCHS, BinaryNetwork
from pipeline.data.open import build_eval_loader
from pipeline.run import cards, checkpoint
from pipeline.run.classes import arrange, by_position, is_classifier, match, names_of
from pipeline.run.config import Config, make_config
from pipeline.run.console import logger, start_console
from pipeline.run.device import get_device
from pipeline.run.errors import Diverged, UserError
from pipeline.run.threads import settle_threads
from pipeline.run.weights import (
    classes_of,
    first_not_finite,
    identify,
    is_ours,
    network_weights,
)
from pipeline.train.evaluation import Evaluation
from pipeline.train.memory import shortage_explained
from pipeline.train.network import build_network, load_weights
from pipeline.train.precision import settle_evaluation, to_device
from pipeline.train.randomness import seed_everything

# A checkpoint may come from anybody: where files lie and what is fetched is not for it to say.
PLACES = {
    "run": ("dir", "name", "resume"),
    "data": ("path", "download", "exclude"),
    "model": ("weights",),
    "distill": ("teacher", "teacher_weights"),
    "train": ("threads",),
}
REMEDY = "set data.path to data with these class folders"

# What evaluates a network on a device in its stead.
Ready = Callable[[BinaryNetwork, Config, torch.device], nn.Module]


@shortage_explained()
def score(path: Path, overrides: list[str], ready: Ready | None = None) -> dict[str, float]:
    """Every metric by its name, and ``images``, of the network in the checkpoint ``path``.

    A checkpoint of ours brings its config, but for ``PLACES``; ``overrides`` are key=value.
    ``ready`` gives what is evaluated, for the network on its device; by default itself. The
    processes stay joined; a caller leaves them by ``rendezvous.stop``. Raises UserError, or
    Diverged where a weight is not finite.
    """
    state = checkpoint.load(path)
    config = make_config(values_of(state), overrides, name="evaluation")
    device = get_device(config)
    start_console()
    config = settle_threads(config, looks=False)
    cards.note(device, config.train.device)
    logger.info("%s: reading %s", path, config.data.path or config.data.dataset)
    config = settle_evaluation(config, device, overrides)
    seed_everything(config.seed, deterministic=config.deterministic)
    model = load_network(config, state, path)
    loader = build_eval_loader(config, device)
    arrange_classes(model, state, loader.classes, path)
    model = to_device(model, config, device)
    logger.info("%s: %s %s on %d images", path, model.arch, model.bits, loader.images)
    evaluated = ready(model, config, device) if ready else model
    return Evaluation(evaluated, loader, config, device)()


def arrange_classes(
    model: BinaryNetwork,
    state: dict[str, Any],
    classes: Sequence[str],
    path: Path,
    remedy: str = REMEDY,
) -> None:
    """Let the outputs of ``model``, loaded from ``state``, stand in the order of the ``classes`` of
    the data: by their names, or by position where the checkpoint has none.

    Raises UserError with the ``remedy`` where the classes are not the same; a part of them is
    refused too.
    """
    names, weights = names_of(state), model.state_dict()
    outputs = next(len(value) for key, value in weights.items() if is_classifier(key))
    order = match(names, outputs, classes, path, remedy)
    model.load_state_dict(arrange(weights, order))
    if names is None and (line := by_position(outputs, classes, path)):
        logger.warning(line)
    elif order != sorted(order):
        logger.info("%s has its classes in another order than the data: matched by name", path)


def load_network(config: Config, state: dict[str, Any], path: Path) -> BinaryNetwork:
    """The network of ``config`` with the weights in the checkpoint ``state``, read from ``path``.

    Raises UserError where they do not fit, and Diverged where one is not finite.
    """
    classes = config.network[2]
    # A network of that many classes is only built if the file holds a classifier of that size.
    if all(classes not in weight.shape[:1] for weight in network_weights(state).values()):
        known = classes_of(state)
        remedy = f"set model.num_classes={known}" if known else "take another"
        raise UserError(f"checkpoint {path} has no classifier of {classes} classes; {remedy}")
    model = build_network(config)
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
