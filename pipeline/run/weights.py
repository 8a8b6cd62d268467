"""The weights of a network in a checkpoint file, ours or the official code's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.run.errors import UserError

CLASSIFIERS = ("fc.weight", "linear.weight")


def network_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights in a checkpoint: the averaged ones where it has them."""
    weights = state.get("ema") or state["state_dict"]
    return {key.removeprefix("module."): value for key, value in weights.items()}


def identify(state: Mapping[str, Any]) -> tuple[str, str]:
    """(arch, bits) of a checkpoint; the official ``resnet18_1w1a`` is told by its classifier.

    A network that the official code trained with --a32 also says 1w1a: give model.bits then.
    """
    name = str(state.get("model", ""))
    arch, _, bits = name.partition("_1w")
    bits = f"1w{bits}" if bits else "32w32a"
    if arch == "resnet18" and "linear.weight" in network_weights(state):
        arch = "resnet18_cifar"
    return arch, bits


def fit_weights(
    own: Mapping[str, Tensor],
    state: Mapping[str, Any],
    path: Path,
    network: str,
    *,
    new_classifier: bool = False,
) -> tuple[dict[str, Tensor], bool]:
    """The weights in the checkpoint ``state`` for a network whose ``state_dict`` is ``own``.

    ``new_classifier`` leaves out a classifier for another number of classes, for fine-tuning; the
    second value says whether that was done. Raises UserError, which names ``path`` and ``network``,
    where names or shapes do not fit.
    """
    weights = network_weights(state)
    wrong = sorted(own.keys() ^ weights.keys()) or [
        key for key in own if own[key].shape != weights[key].shape
    ]
    classifier = [key for key in wrong if key.replace(".bias", ".weight") in CLASSIFIERS]
    skips = new_classifier and bool(wrong) and wrong == classifier and own.keys() == weights.keys()
    if wrong and not skips:
        raise UserError(
            f"checkpoint {path} is not of a {network} with these classes "
            f"(first difference: {wrong[0]}); set model.arch, model.bits or model.num_classes"
        )
    return {**weights, **{key: own[key] for key in wrong}}, skips
