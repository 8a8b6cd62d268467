"""What an export leaves: files that are written whole or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Files = dict[str, bytes]  # their content, by their endings, or by their names in a folder


@dataclass(frozen=True)
class Options:
    """How a network is exported: ``real``, as in ``shrink``; ``weights`` (bits or float) and
    ``opset`` of ONNX, None for the one that suits. For the README of a folder: ``recipe``, the keys
    of the training's config that are not the defaults, and ``curve``, its picture."""

    real: str = "float32"
    weights: str = "bits"
    opset: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    curve: Path | None = None
