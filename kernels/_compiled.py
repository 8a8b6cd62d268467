"""The reference on a CPU with its operators fused by torch.compile, so that a pass reads and writes
a map once instead of once in each operator.

Nothing is compiled outside of ``compiled_reference(True)``: compiling takes up to a minute the
first time, needs a C++ compiler, and rounds differently from the single operators.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# Of the calling thread, which is also the one that a backward pass on a CPU runs in.
_enabled: ContextVar[bool] = ContextVar("enabled", default=False)


@contextmanager
def compiled_reference(enabled: bool) -> Iterator[None]:
    """Inside this context the fusible functions are compiled if ``enabled``, else run as they are.

    If compiling fails, one warning says so and from then on they run as they are.
    """
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def fusible(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which ``compiled_reference`` can have compiled; call it by position only."""

    @functools.cache
    def compiled() -> Callable[..., R]:  # only once it is needed, because the import takes seconds
        torch._dynamo.config.recompile_limit = 64  # a function's flags make a dozen variants of it
        # With this option, bf16 is rounded where the reference rounds it.
        options: dict[str, Any] = {"emulate_precision_casts": True}
        return torch.compile(function, dynamic=True, fullgraph=True, options=options)

    @functools.wraps(function)
    def compiled_or_plain(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _enabled.get():
            return function(*args, **kwargs)
        try:
            return compiled()(*map(_plain, args))
        except Exception as error:  # there are many reasons, such as a missing compiler
            _enabled.set(False)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"not compiled, and so slower on the CPU: {reason}", stacklevel=2)
            return function(*args, **kwargs)

    return compiled_or_plain


def _plain(value: Any) -> Any:
    """A tensor as one that is no parameter and wants no gradient, anything else as it is.

    The compiler takes the sizes of parameters for constants, and would make one more variant for
    tensors that want a gradient.
    """
    return value.detach() if isinstance(value, torch.Tensor) else value
