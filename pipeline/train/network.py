"""The network of a training: built as the config says, and started from a checkpoint if asked."""

from pathlib import Path
from typing import Any

from models import BinaryNetwork, build_model
from pipeline.run import checkpoint
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.weights import first_not_finite, fit_weights


def make_network(config: Config) -> BinaryNetwork:
    """The network of ``config`` on the CPU, started from ``model.weights`` if that is set."""
    model = build_model(
        config.model.arch,
        config.model.bits,
        config.model.num_classes,
        config.estimator.name,
        **config.estimator_options,
    )
    if config.model.weights:
        path = Path(config.model.weights)
        fresh = load_weights(model, checkpoint.load(path), path, tuning=True)
        if name := first_not_finite(model.state_dict()):
            raise UserError(f"model.weights={path}: {name} is not finite; take an earlier one")
        left = f"; new: {', '.join(fresh[:6])}{', ...' if len(fresh) > 6 else ''}" if fresh else ""
        logger.info("started from %s%s", path, left)
    return model


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
