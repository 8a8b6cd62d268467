"""The network of a training: built as the config says, and started from a checkpoint if asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import BinaryNetwork, build_model
from pipeline.run import checkpoint
from pipeline.run.classes import arrange, by_position, difference, is_classifier, names_of, order_of
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.weights import fit_weights


def make_network(
    config: Config, classes: Sequence[str] = (), *, is_fresh: bool = True
) -> BinaryNetwork:
    """The network of ``config`` on the CPU, for data of ``classes``; a fresh one is started from
    ``model.weights`` if that is set."""
    arch, bits, count = config.network
    name, options = config.estimator.name, config.estimator_options
    model = build_model(arch, bits, count, name, **options)
    if config.model.weights and is_fresh:
        _start_from(Path(config.model.weights), model, classes)
    return model


def check_weights(config: Config) -> None:
    """Raise UserError where the checkpoint ``model.weights`` is set, but cannot be read."""
    if config.model.weights:
        checkpoint.load(Path(config.model.weights))


def _start_from(path: Path, model: BinaryNetwork, classes: Sequence[str]) -> None:
    """Load the network in ``path`` into ``model``. Its classifier stays new where it is for other
    classes, which are told by their names, or by their number where the file has no names."""
    state = checkpoint.load(path)
    own = {key: value.clone() for key, value in model.state_dict().items() if is_classifier(key)}
    is_new = load_weights(model, state, path, new_classifier=True)
    names = names_of(state)
    if names is not None and classes:
        order = order_of(names, classes)
        is_new = order is None
        loaded = model.state_dict()
        model.load_state_dict({**loaded, **own} if order is None else arrange(loaded, order))
    outputs = len(next(iter(own.values())))
    if is_new:
        what = difference(names, outputs, classes) if names is not None else "for other classes"
        logger.info("started from %s with a new classifier: %s", path, what)
        return
    logger.info("started from %s", path)
    if names is None and classes and (line := by_position(outputs, classes, path)):
        logger.warning(line)


def load_weights(
    model: BinaryNetwork, state: dict[str, Any], path: Path, *, new_classifier: bool = False
) -> bool:
    """Load the network in the checkpoint ``state``, read from ``path``, into ``model``.

    Returns whether its classifier was left out, which ``new_classifier`` allows where it is for
    another number of classes. Raises UserError where the weights do not fit.
    """
    network = f"{model.arch} {model.bits}"
    options = {"new_classifier": new_classifier}
    weights, skips = fit_weights(model.state_dict(), state, path, network, **options)
    model.load_state_dict(weights)
    return skips
