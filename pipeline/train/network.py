"""The network of a training: built as the config says, and started from a checkpoint if asked."""

from pathlib import Path
from typing import Any

from models import BinaryNetwork, build_model
from pipeline.run import checkpoint
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.weights import fit_weights


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
        fresh = load_weights(model, checkpoint.load(path), path, new_classifier=True)
        logger.info("started from %s%s", path, " with a new classifier" if fresh else "")
    return model


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
