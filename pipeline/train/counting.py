"""The network of a config or of a checkpoint, counted: docs/counting.md says how."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models import ARCHS, BinaryNetwork
from models.counting import Count, count_layers
from pipeline.data.open import expected_images
from pipeline.run import checkpoint
from pipeline.run.config import Config, make_config
from pipeline.run.device import get_device
from pipeline.run.errors import UserError
from pipeline.train.network import make_network
from pipeline.train.precision import settle_precision, to_device
from pipeline.train.scoring import load_network, values_of

CPU = torch.device("cpu")


def count_config(config: Config) -> dict[str, Any]:
    """The network of ``config`` as ``_describe`` returns it. Nothing is read but the config: where
    it leaves the number of classes to the data, the data set is taken as it was published."""
    side, classes = expected_images(config)
    if config.model.num_classes is None and classes:
        config = config.changed({"model.num_classes": classes})
    try:
        model = make_network(config, is_fresh=False)
    except (RuntimeError, MemoryError):
        what = f"model.num_classes is {config.model.num_classes}, for which there is no memory"
        raise UserError(f"{what}; set model.num_classes=1000") from None
    return _describe(config, model, side)


def count_checkpoint(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The same of the network in a checkpoint, ours or an official one, whose weights must fit."""
    state = checkpoint.load(path)
    config = make_config(values_of(state), overrides, name="summary")
    return _describe(config, load_network(config, state, path), expected_images(config)[0])


def _describe(config: Config, model: BinaryNetwork, side: int) -> dict[str, Any]:
    """Plain values: the network, what it was counted with, and under ``layers`` and ``total`` the
    fields of ``Count`` and its sums."""
    if config.train.precision == "auto":
        config = settle_precision(config, get_device(config))
    try:
        with _autocast(config):
            layers = count_layers(to_device(model, config, CPU), side)
    except (RuntimeError, MemoryError) as error:
        raise _refusal(config, side, error) from None
    return {
        "network": model.arch,
        "bits": model.bits,
        "classes": config.network[2],
        "image_size": side,
        "precision": config.train.precision,
        "layers": [{"name": name, **_plain(layer)} for name, layer in layers.items()],
        "total": _plain(sum(layers.values(), Count())),
    }


def _plain(count: Count) -> dict[str, Any]:
    return {**asdict(count), "bits": count.bits, "bops": count.binary_macs, "ops": count.ops}


def _autocast(config: Config) -> contextlib.AbstractContextManager[Any]:
    """What is kept in fp16 has the size of bf16, in which a CPU is faster."""
    is_half = config.train.precision in ("bf16", "fp16")
    return torch.autocast("cpu", torch.bfloat16) if is_half else contextlib.nullcontext()


def _refusal(config: Config, side: int, error: BaseException) -> UserError:
    """The error about a network that cannot take images of ``side`` pixels."""
    arch, reason = ARCHS[config.model.arch], (str(error).splitlines() or ["no memory"])[0]
    return UserError(
        f"{arch.name} does not take images of {side} x {side} pixels ({reason}); set "
        f"data.dataset={arch.dataset} data.size={arch.image_size}"
    )
