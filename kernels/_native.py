"""The reference's functions on a CPU in C++ (native/blocks.cpp): each map is read and written once.

Every function here takes and gives what the one of its name in ``kernels.reference`` does, and calls
that for what the library cannot: float64 and fp16, and all on a machine without a compiler.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from kernels import reference
from kernels.estimators import ESTIMATORS, get_estimator
from native import build

P = ParamSpec("P")
R = TypeVar("R")

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # the dtypes of maps


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, built at the first call; None, and one warning, where it cannot be built."""
    try:
        return ctypes.CDLL(str(build.library("training", {"estimators.cpp": _estimators()})))
    except (build.NoLibrary, OSError) as error:
        warnings.warn(f"training is slower on this CPU: {error}", stacklevel=2)
        return None


def _estimators() -> str:
    """C++ of h of every estimator that gives it: see ``Estimator.native_factor``."""
    functions = [
        f'extern "C" void factor_{name}(const float* params, const float* xs, float* hs, int n) {{\n'
        f"{each.native_factor}\n}}\n"
        for name, each in ESTIMATORS.items()
        if each.native_factor
    ]
    return '#include "elementary.h"\nusing namespace elementary;\n' + "\n".join(functions)


def takes(t: Tensor) -> bool:
    """Whether maps of the dtype and device of ``t`` are worked on by the library."""
    return t.device.type == "cpu" and t.dtype in NAMES and library() is not None


def instead_of(plain: Callable[P, R], at: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorated function where the library takes argument number ``at``, else ``plain``."""

    def choose(native: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(plain)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
            decisive = args[at]
            assert isinstance(decisive, Tensor)
            return (native if takes(decisive) else plain)(*args, **kwargs)

        return chosen

    return choose


def _call(name: str, like: Tensor, *args: Tensor | int | float | None) -> float:
    """Call the function for the dtype of ``like``. Tensors go as addresses, floats as doubles."""
    given = [
        a.data_ptr() if isinstance(a, Tensor) else a for a in (*args, torch.get_num_threads())
    ]
    function = getattr(library(), f"{name}_{NAMES[like.dtype]}")
    return function(*(ctypes.c_void_p(a) if isinstance(b, Tensor) or a is None else a))


@instead_of(reference.deviations, 0)
def deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    mean, squares = z.new_empty(2, z.shape[1], dtype=torch.float32)
    _deviations(z, z, *z.shape, relu, mean, squares)
    return mean, squares
