"""The reference on a CPU, its operators fused by torch.compile: a pass then reads and writes a map
once, and not once in each operator.

Off until ``compile_reference``: compiling takes up to a minute the first time, needs a C++
compiler, and rounds otherwise than the operators one by one.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_enabled = False


def compile_reference(enabled: bool) -> None:
    """Let the fusible functions be compiled from now on, or run as they are."""
    global _enabled
    _enabled = enabled


def fusible(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, compiled while ``compile_reference`` says so; where that fails, a warning, and
    from then on all of them run as they are. Called by position only."""

    @functools.cache
    def compiled() -> Callable[..., R]:  # not before it is needed: the import takes seconds
        torch._dynamo.config.recompile_limit = 64  # of a function: its flags make a dozen variants
        # The option: bf16 is rounded where the reference rounds it.
        options: dict[str, Any] = {"emulate_precision_casts": True}
        return torch.compile(function, dynamic=True, fullgraph=True, options=options)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _enabled:
            return function(*args, **kwargs)
        try:
            return compiled()(*map(_plain, args))
        except Exception as error:  # in many ways, such as for want of a compiler
            compile_reference(False)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"not compiled, and so slower on the CPU: {reason}", stacklevel=2)
            return function(*args, **kwargs)

    return run


def _plain(value: Any) -> Any:
    """A tensor without a gradient: parameters have a fixed size for the compiler, and whether a
    gradient is wanted would be one more variant."""
    return value.detach() if isinstance(value, torch.Tensor) else value
