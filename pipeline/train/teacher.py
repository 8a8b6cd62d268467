"""The network that a training learns from in place of labels: torchvision's, or that of a
checkpoint."""

from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models as torchvision

from models import ARCHS
from pipeline.data.open import train_sides
from pipeline.run import checkpoint
from pipeline.run.classes import by_position, difference
from pipeline.run.config import Config, make_config
from pipeline.run.console import logger
from pipeline.run.errors import UserError, first_line
from pipeline.run.weights import first_not_finite, identify, is_ours, network_weights
from pipeline.train.network import build_network
from pipeline.train.scoring import arrange_classes, load_network, values_of

OWN = "train one on these data, with model.bits=32w32a for instance, and give its best.pt"


def make_teacher(config: Config, classes: Sequence[str]) -> nn.Module | None:
    """The network of ``distill.teacher``, on the CPU, whose outputs stand for ``classes``, those of
    the data; None where no teacher is asked for.

    Raises UserError where there is no such network, or where it is for other classes.
    """
    name = config.distill.teacher
    if name is None:
        return None
    is_known = name in _torchvision_names()
    teacher = _of_torchvision(config, classes) if is_known else _of_checkpoint(Path(name), classes)
    logger.info("distill.teacher=%s: the training learns its outputs", name)
    return teacher.requires_grad_(False).eval()


def stand_in(config: Config) -> nn.Module:
    """A network of the form of ``distill.teacher``, on the CPU, with weights at random and as many
    outputs as that of ``config`` has: it costs what the teacher costs.

    Raises UserError where there is no such network.
    """
    name, classes = str(config.distill.teacher), config.network[2]
    if name in _torchvision_names():
        network = torchvision.get_model(name, weights=None, num_classes=classes)
        _outputs(network, config)
        return network
    values = values_of(_read(Path(name)))
    return build_network(make_config(values, [f"model.num_classes={classes}"], name="teacher"))


def _of_checkpoint(path: Path, classes: Sequence[str]) -> nn.Module:
    state = _read(path)
    network = load_network(make_config(values_of(state), name="teacher"), state, path)
    arrange_classes(network, state, classes, path, OWN)
    return network


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint of a teacher, which says of which network it is."""
    if not path.exists():
        raise UserError(
            f"distill.teacher is {str(path)!r}, which is neither a file nor a network of "
            "torchvision's; give the path of a checkpoint, or such a name: distill.teacher=resnet34"
        )
    state = checkpoint.load(path)
    _check_finite(state, path)
    if not is_ours(state) and identify(state)[0] not in ARCHS:
        guess = path.stem.partition("-")[0]
        known = guess if guess in _torchvision_names() else "resnet34"
        raise UserError(
            f"distill.teacher={path} does not say of which network it is; where it is one of "
            f"torchvision's, give both: distill.teacher={known} distill.teacher_weights={path}"
        )
    return state


def _check_finite(state: dict[str, Any], path: Path) -> None:
    if bad := first_not_finite(network_weights(state)):
        raise UserError(f"checkpoint {path}: {bad} is not finite; take an earlier one")


def _torchvision_names() -> list[str]:
    """The networks of torchvision that tell classes of images."""
    return torchvision.list_models(module=torchvision)


def _of_torchvision(config: Config, classes: Sequence[str]) -> nn.Module:
    name, file = str(config.distill.teacher), config.distill.teacher_weights
    network = _from_file(name, Path(file)) if file else _fetched(name)
    outputs = _outputs(network, config)
    if outputs != len(classes):
        raise UserError(f"distill.teacher={name}: {difference(None, outputs, classes)}; {OWN}")
    if line := by_position(outputs, classes, Path(file or name)):
        logger.warning(line)
    return network


def _fetched(name: str) -> nn.Module:
    """Torchvision's network with its weights for ImageNet, which torch.hub keeps."""
    try:
        return torchvision.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"distill.teacher={name}: its weights cannot be fetched ({first_line(error)}); check "
            "the network and the disk, or set distill.teacher_weights to a file with them"
        ) from None


def _from_file(name: str, file: Path) -> nn.Module:
    """Torchvision's network with the weights in ``file``."""
    state = checkpoint.load(file)
    _check_finite(state, file)
    weights = network_weights(state)
    matrices = [len(weight) for weight in weights.values() if weight.ndim == 2]
    network = torchvision.get_model(
        name, weights=None, num_classes=matrices[-1] if matrices else 1000
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"distill.teacher_weights={file} is not of torchvision's {name}; name its network as "
            "distill.teacher"
        ) from None
    return network


def _outputs(network: nn.Module, config: Config) -> int:
    """How many outputs a network has for images such as the training shows."""
    for side in train_sides(config):
        try:
            with torch.no_grad():
                outputs = network.eval()(torch.zeros(1, 3, side, side)).shape[1]
        except Exception as error:  # each network refuses in its own way
            raise UserError(
                f"distill.teacher={config.distill.teacher} does not take images of {side} pixels "
                f"({first_line(error)}); set distill.teacher=resnet34"
            ) from None
    return outputs
