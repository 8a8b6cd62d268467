"""What is exported: the network in a checkpoint, ours or an official one, or in a packed file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models import BinaryNetwork
from pipeline.data.draws import MEAN, STD
from pipeline.data.open import DATASETS, expected_images
from pipeline.export.pack import pack, unpack
from pipeline.export.packed import About, Images, Packed
from pipeline.export.packed_file import is_packed, read
from pipeline.run import checkpoint
from pipeline.run.classes import names_of
from pipeline.run.config import Config, flatten, make_config
from pipeline.run.errors import UserError
from pipeline.run.origin import commit
from pipeline.run.weights import is_ours
from pipeline.train.scoring import PLACES, load_network, values_of

WEIGHTS = "model.safetensors"  # in a folder of Hugging Face's layout


class Source(NamedTuple):
    """A network to export: packed, and as it stands in torch, with the config of its data.
    ``recipe``: the keys of its training's config that are not the defaults; empty where nobody
    knows them."""

    packed: Packed
    network: BinaryNetwork
    config: Config
    recipe: Mapping[str, Any] = {}


def open_source(path: Path, overrides: Sequence[str]) -> Source:
    """The network in ``path``: a checkpoint, a packed file, or a folder of Hugging Face's layout.

    ``overrides`` are key=value, as ``launch.evaluate`` takes them. Raises UserError where there is
    none, and Diverged where one of its weights is not finite.
    """
    path = packed_path(path)
    if is_packed(path):
        packed = read(path)
        return Source(packed, unpack(packed), _config(packed.about, packed.num_classes, overrides))
    state = checkpoint.load(path)
    config = make_config(values_of(state), overrides, name="export")
    network = load_network(config, state, path).eval()
    recipe = _recipe(config) if is_ours(state) else {}
    return Source(pack(network, describe(config, state)), network, config, recipe)


def _recipe(config: Config) -> dict[str, Any]:
    usual = flatten(make_config({}, name=config.run.name))
    places = {f"{section}.{key}" for section, keys in PLACES.items() for key in keys}
    changed = {key: value for key, value in flatten(config).items() if value != usual[key]}
    return {key: value for key, value in changed.items() if key not in places}


def packed_path(path: Path) -> Path:
    """The packed file that ``path`` stands for: of a folder, the file in it."""
    return path / WEIGHTS if path.is_dir() else path


def describe(config: Config, state: dict[str, Any]) -> About:
    """The network in the checkpoint ``state``, of this ``config``, in words and numbers."""
    arch, bits, classes = config.network
    names = names_of(state)
    if names is not None and len(names) != classes:
        raise UserError(
            f"the checkpoint names {len(names)} classes, its network has {classes}; take another"
        )
    return About(
        arch, bits, config.estimator.name, config.data.dataset, names, images_of(config),
        _accuracy(state), commit=commit(),
    )  # fmt: skip


def images_of(config: Config) -> Images:
    """How the evaluation of ``config`` prepares images, rounded as its loader rounds."""
    size, _ = expected_images(config)
    if DATASETS[config.data.dataset].is_resident:  # of uint8 that is divided by 255 first
        return Images(size, size, 255.0, _floats(MEAN, 1), _floats(STD, 1))
    return Images(size, config.data.resize, 1.0, _floats(MEAN, 255), _floats(STD, 255))


def _floats(values: Sequence[float], factor: float) -> tuple[float, float, float]:
    red, green, blue = (float(np.float32(value) * np.float32(factor)) for value in values)
    return red, green, blue


def _accuracy(state: dict[str, Any]) -> dict[str, float]:
    """The metrics of a checkpoint of ours that was saved at the end of an epoch."""
    last = state.get("last")
    if not is_ours(state) or not isinstance(last, dict) or state.get("batch"):
        return {}
    found = {name: last.get(f"val_{name}") for name in ("top1", "top5")}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _config(about: About, classes: int, overrides: Sequence[str]) -> Config:
    """The config with which the network of a packed file is evaluated."""
    data = {"dataset": about.dataset, "size": about.images.size, "resize": about.images.resize}
    model = {"arch": about.arch, "bits": about.bits, "num_classes": classes}
    return make_config({"model": model, "data": data}, overrides, name="export")
