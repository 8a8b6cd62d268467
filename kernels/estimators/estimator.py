"""What a gradient estimator is, and the registry of those that can be chosen by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Factor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Option:
    """A number that the user chooses for an estimator: the config key ``estimator.<name>``."""

    default: float
    low: float  # the smallest value allowed
    high: float  # the largest value allowed
    meaning: str

    def check(self, name: str, value: float) -> None:
        """Raise ``ValueError``, which calls the option ``name``, unless ``value`` is allowed."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{name} is {value}; it must lie in [{self.low:g}, {self.high:g}]")


@dataclass(frozen=True)
class Estimator:
    """One gradient estimator.

    ``schedule(progress, **options)`` gives the values of ``parameters`` at ``progress`` =
    epoch / epochs in [0, 1], and raises ``ValueError`` for an option outside of its limits.
    ``activation_schedule`` gives the values for activations where they differ from those for
    weights. The values travel as one small tensor ``params`` on the device, so that a new value
    neither recompiles nor synchronises anything.

    ``factor(x, params)`` is h and ``surrogate(x, params)`` is f; both are elementwise on tensors
    of any shape. ``triton_factor(x, params)`` is the same h in Triton, on a block of fp32 values
    and a pointer to fp32 parameters. ``native_factor`` is the same h in C++: statements that read
    ``params`` and return a function of one float, with the functions of
    native/training/elementary.h; None where there is none, and ``factor`` then serves trainings on
    a CPU, too. None of these has to treat NaN, because the ops do.

    ``options`` holds the options of the schedules by name. No other estimator may use the same
    names, because all of them are keys of one section of the config.

    ``triton_surrogate`` makes the forward pass sign(f(x)) instead of sign(x), for an f whose sign
    changes elsewhere than at 0: it is f in Triton. Such an estimator is one of weights alone, and
    ``activations`` names that of the activations beside them, whose options stay at their defaults.
    """

    name: str
    source: str
    parameters: tuple[str, ...]
    schedule: Callable[..., tuple[float, ...]]
    factor: Factor
    triton_factor: Any
    surrogate: Factor
    options: Mapping[str, Option] = field(default_factory=dict)
    activation_schedule: Callable[..., tuple[float, ...]] | None = None
    native_factor: str | None = None
    activations: str | None = None
    triton_surrogate: Any = None

    @property
    def of_activations(self) -> "Estimator":
        """The estimator of the activations beside weights of this one."""
        return get_estimator(self.activations) if self.activations else self


ESTIMATORS: dict[str, Estimator] = {}


def register(estimator: Estimator) -> None:
    """Make ``estimator`` known by its name; ``ValueError`` if that or an option's is taken."""
    if estimator.name in ESTIMATORS:
        raise ValueError(f"an estimator {estimator.name!r} exists already; choose another name")
    taken = {"name"}.union(*(known.options for known in ESTIMATORS.values()))
    for option in estimator.options:
        if option in taken:
            raise ValueError(f"an option {option!r} exists already; choose another name")
    ESTIMATORS[estimator.name] = estimator


def get_estimator(name: str) -> Estimator:
    """The estimator called ``name``; ``ValueError`` naming the known ones."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]
