"""The networks that can be chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from models.network import BinaryNetwork


@dataclass(frozen=True)
class Arch:
    """One network that can be chosen as ``model.arch``."""

    name: str
    build: Callable[..., BinaryNetwork]  # called as build(arch, bits, num_classes, estimator, ...)
    image_size: int  # the side, in pixels, of the images that it was made for
    dataset: Literal["cifar10", "imagenet"]  # the one on which it was published


ARCHS: dict[str, Arch] = {}


def register(arch: Arch) -> None:
    """Make ``arch`` known by its name; ``ValueError`` if the name is taken."""
    if arch.name in ARCHS:
        raise ValueError(f"a network {arch.name!r} exists already; choose another name")
    ARCHS[arch.name] = arch
