"""Gradient estimators: what stands in for the derivative of sign.

The forward pass is sign(x), or sign(f(x)) where an estimator asks for that. An estimator says which
factor h(x) multiplies the gradient, ``dx = dy * h(x)``, and which surrogate f with f' = h (up to
clipping) it thereby trains. To add one, write a file in this folder that defines ``ESTIMATOR``:
kernels, models, indicators and the config take it from there.
"""

import importlib
import pkgutil

from kernels.estimators.estimator import ESTIMATORS, Estimator, Option, get_estimator, register

__all__ = ["ESTIMATORS", "Estimator", "Option", "get_estimator", "register"]


def _register_files() -> None:
    """Register the estimator of every file here: first the default, then the others by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    for name in sorted(names, key=lambda name: (name != "reste", name)):
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "ESTIMATOR"):
            register(module.ESTIMATOR)


_register_files()
