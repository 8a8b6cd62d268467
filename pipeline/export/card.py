"""The README of a network in Hugging Face's layout."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from models.counting import Count, count_layers
from pipeline.export.pack import unpack
from pipeline.export.packed import About, Packed

PAPER = "https://arxiv.org/abs/2308.06689"
REAL_BYTES = 4  # of a weight in float32


def card(packed: Packed, size: int, recipe: Mapping[str, Any], curve: str) -> str:
    """Markdown: front matter for the Hub, then what a person asks.

    ``size``: bytes of the packed file. ``recipe``: the keys of the training's config that are not
    the defaults. ``curve``: the file of its picture; empty where there is none.
    """
    parts = [_front_matter(packed.about), _title(packed), _figures(packed, size), _USE]
    if recipe:
        lines = "\n".join(f"    {key}={value}" for key, value in recipe.items())
        parts.append(f"## Recipe\n\nWhat differs from the defaults of the trainer:\n\n{lines}")
    if curve:
        parts.append(f"![Loss and accuracy over the epochs]({curve})")
    return "\n\n".join([*parts, _ORIGIN]) + "\n"


def _front_matter(about: About) -> str:
    values: dict[str, Any] = {
        "library_name": "reste-trainer",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["binary-neural-network", "image-classification", about.estimator, about.arch],
        "metrics": ["accuracy"],
    }
    if about.accuracy:
        task = {"type": "image-classification"}
        results = [
            {"type": "accuracy", "name": name, "value": round(value, 2)}
            for name, value in about.accuracy.items()
        ]
        result = {"task": task, "dataset": {"name": about.dataset, "type": about.dataset}}
        entry = {"name": about.arch, "results": [{**result, "metrics": results}]}
        values["model-index"] = [entry]
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _title(packed: Packed) -> str:
    about = packed.about
    weights, activations = about.bits.split("w")
    kind = f"{weights}-bit weights and {activations.removesuffix('a')}-bit activations"
    return (
        f"# {about.arch}, {about.bits}\n\nA network of {kind} for {packed.num_classes} classes, "
        f"trained with the {about.estimator} estimator on {about.dataset}."
    )


def _figures(packed: Packed, size: int) -> str:
    side = packed.about.images.size
    total = sum(count_layers(unpack(packed), side).values(), Count())
    parameters = total.real_parameters + total.binary_parameters
    rows = {
        "images": f"{side} x {side} pixels",
        "parameters": f"{parameters:,}",
        "model.safetensors": f"{size:,} bytes ({parameters * REAL_BYTES:,} in float32)",
        "real weights": packed.about.real,
        "operations an image": f"{math.ceil(total.ops):,} OPs (BOPs / 64 + FLOPs)",
        **{name: f"{value:.2f} %" for name, value in packed.about.accuracy.items()},
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{lines}"


_USE = """## Use

From a checkout of the trainer, with this folder beside it:

    ./reste predict FOLDER photo.jpg
    python -c 'from pipeline.export.hub import load_network; print(load_network("FOLDER"))'

Weights are stored as bits; docs/inference.md of the trainer has the format."""

_ORIGIN = f"""## Source

Method: Wu et al., [Estimator Meets Equilibrium Perspective]({PAPER}), ICCV 2023. Licence: MIT."""
