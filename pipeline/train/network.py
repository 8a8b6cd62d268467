"""The network of a training: built as the config says, and started from a checkpoint if asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import BinaryNetwork, build_model
from pipeline.run import checkpoint
from pipeline.run.classes import arrange, by_position, difference, is_classifier, names_of, order_of
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.weights import first_not_finite, fit_weights


def make_network(
    config: Config, classes: Sequence[str] = (), *, is_fresh: bool = True
) -> BinaryNetwork:
    """The network of ``config`` on the CPU, for data of ``classes``; a fresh one is started from
    ``model.weights`` if that is set."""
    model = build_network(config)
    if config.model.weights and is_fresh:
        _start_from(Path(config.model.weights), model, classes)
    return model


def build_network(config: Config) -> BinaryNetwork:
    """The network of ``config`` on the CPU, freshly initialised."""
    arch, bits, count = config.network
    name, transform = config.estimator.name, config.model.weight_transform
    return build_model(arch, bits, count, name, transform, **config.estimator_options)


def check_weights(config: Config) -> None:
    """Raise UserError where the checkpoint ``model.weights`` is set, but cannot be read."""
    if config.model.weights:
        checkpoint.load(Path(config.model.weights))


def _start_from(path: Path, model: BinaryNetwork, classes: Sequence[str]) -> None:
    """Load the network in ``path`` into ``model``; say what stays new.

    The classifier does where it is for other classes, which are told by their names, or by their
    number where the file has no names. Raises UserError where weights are not finite.
    """
    state = checkpoint.load(path)
    own = {key: value.clone() for key, value in model.state_dict().items() if is_classifier(key)}
    fresh = load_weights(model, state, path, tuning=True)
    if name := first_not_finite(model.state_dict()):
        raise UserError(f"model.weights={path}: {name} is not finite; take an earlier one")
    layers = [key for key in fresh if not is_classifier(key)]
    is_new = len(layers) < len(fresh)
    shown = ", ".join([*layers[:6], *(["..."] if len(layers) > 6 else [])])
    left = f"; new too: {shown}" if layers else ""
    names = names_of(state)
    if names is not None and classes:
        order = order_of(names, classes)
        is_new = is_new or order is None
        loaded = model.state_dict()
        model.load_state_dict({**loaded, **own} if order is None else arrange(loaded, order))
    outputs = len(next(iter(own.values())))
    if is_new:
        what = difference(names, outputs, classes) if names is not None else "for other classes"
        logger.info("started from %s with a new classifier: %s%s", path, what, left)
        return
    logger.info("started from %s%s", path, left)
    if names is None and classes and (line := by_position(outputs, classes, path)):
        logger.warning(line)


def load_weights(
    model: BinaryNetwork, state: dict[str, Any], path: Path, *, tuning: bool = False
) -> list[str]:
    """Load the network in the checkpoint ``state``, read from ``path``, into ``model``.

    Returns the names of weights that are not in it and stay as they were; ``fit_weights`` says what
    may be absent when ``tuning``. Raises UserError where the weights do not fit.
    """
    network = f"{model.arch} {model.bits}"
    fit = fit_weights(model.state_dict(), state, path, network, tuning=tuning)
    model.load_state_dict(fit.weights)
    if fit.note:
        logger.info("%s: %s", path, fit.note)
    return fit.fresh
