"""The networks by name.

To add one, write a file in this folder whose ``NETWORKS`` is a tuple of ``Arch``.
"""

import importlib
import pkgutil

from kernels import get_estimator
from models.layers import BITS
from models.network import BinaryNetwork
from models.registry import ARCHS, Arch, register

__all__ = ["ARCHS", "BITS", "Arch", "BinaryNetwork", "build_model", "register"]


def _register_files() -> None:
    """Register the networks of every file here."""
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for arch in getattr(module, "NETWORKS", ()):
            register(arch)


_register_files()


def build_model(
    arch: str,
    bits: str = "1w1a",
    num_classes: int = 10,
    estimator: str = "reste",
    transform: str = "none",
    **options: float,
) -> BinaryNetwork:
    """A freshly initialised network, from (N, 3, H, W) images to (N, num_classes) logits.

    Args:
        arch: a key of ``ARCHS``.
        bits: 1w1a (binary weights and activations), 1w32a (binary weights), 32w1a (binary
            activations) or 32w32a.
        estimator: a key of ``kernels.ESTIMATORS``, for weights and activations alike. Beside an
            estimator of sign(f(w)), the real weights of 32w1a are f(w).
        transform: a key of ``kernels.TRANSFORMS``, done to binary weights before their sign, or
            none.
        options: the estimator's own, such as ``o_end=3.0`` for reste.

    Raises:
        ValueError: an unknown arch, bits, estimator, transform or option, or fewer than two
            classes.

    Keys of the ``state_dict`` are those of the official networks (github.com/DravenALG/ReSTE).
    """
    if arch not in ARCHS:
        raise ValueError(f"arch {arch!r} is unknown; choose one of {', '.join(ARCHS)}")
    if bits not in BITS:
        raise ValueError(f"bits {bits!r} is unknown; choose one of {', '.join(BITS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
    known = get_estimator(estimator).options
    for option in options:
        if option not in known:
            raise ValueError(
                f"{option!r} is no option of {estimator}; it has {', '.join(known) or 'none'}"
            )
    model = ARCHS[arch].build(arch, bits, num_classes, estimator, **options)
    if transform != "none":
        model.transform_weights(transform)
    return model
