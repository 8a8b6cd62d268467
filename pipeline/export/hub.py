"""A folder in Hugging Face's layout: config.json, model.safetensors and README.md.

model.safetensors is the packed file, config.json has the keys of timm, and the README says what the
network is. ``load_network`` reads the folder with torch and this repository alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models import BinaryNetwork
from pipeline.export.card import card
from pipeline.export.output import Files, Options
from pipeline.export.pack import unpack
from pipeline.export.packed import Images, Packed
from pipeline.export.packed_file import VERSION, encode, read
from pipeline.export.source import WEIGHTS

CURVE = "curve.png"


def files(packed: Packed, options: Options) -> Files:
    """The files of the folder by their names, the curve of the training included."""
    weights = encode(packed)
    curve = options.curve
    found = {
        WEIGHTS: weights,
        "config.json": json.dumps(config(packed), indent=2, ensure_ascii=True).encode() + b"\n",
        "README.md": card(packed, len(weights), options.recipe, CURVE if curve else "").encode(),
    }
    return found if curve is None else {**found, CURVE: curve.read_bytes()}


def config(packed: Packed) -> dict[str, Any]:
    """What timm's config.json says of a network, and what a binary one has beside that."""
    about, images = packed.about, packed.about.images
    features = packed.tensors[f"{packed.steps[-1].layer}.weight"].shape[1]
    mean, std = _of_unit_pixels(images)
    return {
        "architecture": about.arch,
        "num_classes": packed.num_classes,
        "num_features": features,
        "pretrained_cfg": {
            "input_size": [3, images.size, images.size],
            "mean": mean,
            "std": std,
            "crop_pct": round(images.size / images.resize, 4),
            "interpolation": "bilinear",
        },
        "label_names": None if about.classes is None else list(about.classes),
        "bits": about.bits,
        "estimator": about.estimator,
        "format_version": VERSION,
    }


def _of_unit_pixels(images: Images) -> tuple[list[float], list[float]]:
    """mean and std for pixels from 0 to 1."""
    both = (np.array(each) * images.divisor / 255 for each in (images.mean, images.std))
    mean, std = ([round(float(value), 6) for value in each] for each in both)
    return mean, std


def load_network(folder: str | Path) -> BinaryNetwork:
    """The network in a folder that export wrote, in evaluation and on the CPU, with the weights of
    model.safetensors; raises UserError where it is none or is damaged."""
    return unpack(read(Path(folder) / WEIGHTS))
