"""What a transform of weights is, and the registry of those that can be chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

CHANNEL = (1, 2, 3)  # the dimensions of a weight (O, I, kH, kW) that belong to one output channel


@dataclass(frozen=True)
class Transform:
    """One transform of the weight of a convolution.

    ``apply(w, params)`` is u, of the shape of w (O, I, kH, kW), by operators that autograd knows.
    ``schedule(progress)`` gives the values of ``parameters`` at ``progress`` = epoch / epochs in
    [0, 1]. They travel as one small tensor ``params`` on the device, so that a new value neither
    recompiles nor synchronises anything. They may change the gradient alone, never u: else the
    scale mean |u| of a checkpoint would not be the one that batch norm's statistics belong to.
    """

    name: str
    source: str
    parameters: tuple[str, ...]
    schedule: Callable[[float], tuple[float, ...]]
    apply: Callable[[Tensor, Tensor], Tensor]


TRANSFORMS: dict[str, Transform] = {}


def register(transform: Transform) -> None:
    """Make ``transform`` known by its name; ``ValueError`` if that is taken."""
    if transform.name in TRANSFORMS:
        raise ValueError(f"a transform {transform.name!r} exists already; choose another name")
    TRANSFORMS[transform.name] = transform


def get_transform(name: str) -> Transform:
    """The transform called ``name``; ``ValueError`` naming the known ones."""
    if name not in TRANSFORMS:
        raise ValueError(f"transform {name!r} is unknown; choose one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]
