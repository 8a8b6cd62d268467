"""The weights of a network in a checkpoint file, ours or the official code's."""

from pathlib import Path
from typing import Any

import torch

from models import BinaryNetwork
from pipeline.run.errors import UserError


def network_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights in a checkpoint: the averaged ones where it has them."""
    weights = state.get("ema") or state["state_dict"]
    return {key.removeprefix("module."): value for key, value in weights.items()}


def identify(state: dict[str, Any]) -> tuple[str, str]:
    """(arch, bits) of a checkpoint; the official ``resnet18_1w1a`` is told by its classifier.

    A network that the official code trained with --a32 also says 1w1a: give model.bits then.
    """
    name = str(state.get("model", ""))
    arch, _, bits = name.partition("_1w")
    bits = f"1w{bits}" if bits else "32w32a"
    if arch == "resnet18" and "linear.weight" in network_weights(state):
        arch = "resnet18_cifar"
    return arch, bits


def load_weights(
    model: BinaryNetwork, state: dict[str, Any], path: Path, *, new_classifier: bool = False
) -> bool:
    """Load a checkpoint's network into ``model``; whether its classifier was left out.

    ``new_classifier`` leaves out one for another number of classes, for fine-tuning.
    """
    weights = network_weights(state)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [
        key for key in own if own[key].shape != weights[key].shape
    ]
    classifier = [key for key in wrong if key.startswith(("fc.", "linear."))]
    skips = new_classifier and bool(wrong) and wrong == classifier and own.keys() == weights.keys()
    if wrong and not skips:
        raise UserError(
            f"checkpoint {path} is not of a {model.arch} {model.bits} with these classes "
            f"(first difference: {wrong[0]}); set model.arch, model.bits or model.num_classes"
        )
    model.load_state_dict({**weights, **{key: own[key] for key in wrong}})
    return skips
