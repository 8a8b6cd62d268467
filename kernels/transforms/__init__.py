"""Transforms of weights: what a binary weight is the sign of, where it is not the weight itself.

They have the gradient of their equation. To add one, write a file in this folder that defines
``TRANSFORM``: models and the config take it from there.
"""

import importlib
import pkgutil

from kernels.transforms.transform import TRANSFORMS, Transform, get_transform, register

__all__ = ["TRANSFORMS", "Transform", "get_transform", "register"]


def _register_files() -> None:
    """Register the transform of every file here."""
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        if hasattr(module, "TRANSFORM"):
            register(module.TRANSFORM)


_register_files()
