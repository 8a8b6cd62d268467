"""Which lines and operators the launches of a step come from."""

import collections
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from tests import ROOT
from tests.standin import device as standin

OURS = tuple(str(ROOT / room) for room in ("native", "kernels", "models", "pipeline", "launch"))


class Origins(TorchDispatchMode):
    """Counts launches by the operator that makes them, or the Triton kernel that is launched by
    itself, and by what called it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.is_inside = False  # an operator, to which the kernels that it launches belong

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.is_inside = True
        try:
            return self._count(str(op), lambda: op(*args, **(kwargs or {})))
        finally:
            self.is_inside = False

    def run_of(self) -> Callable[..., Any]:
        """What stands in for ``JITFunction.run``."""
        original = JITFunction.run

        def run(kernel, *args, **kwargs):
            launch = functools.partial(original, kernel, *args, **kwargs)
            return launch() if self.is_inside else self._count(f"triton {kernel.__name__}", launch)

        return run

    def _count(self, name: str, call: Callable[[], Any]) -> Any:
        before = _launches()
        result = call()
        if made := _launches() - before:
            self.counts[f"{name} in {_caller()}"] += made
        return result


def origins(step: Callable[[], object]) -> dict[str, int]:
    """The launches of ``step`` by their origin, most of them first."""
    standin.reset()
    with Origins() as found, mock.patch.object(JITFunction, "run", found.run_of()):
        step()
    return dict(found.counts.most_common())


def _launches() -> int:
    return sum(sum(names.values()) for names in standin.report().launches.values())


def _caller() -> str:
    """The node of the backward pass, if there is one, and our two innermost lines."""
    node = torch._C._current_autograd_node()
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-2:]]
    return " > ".join([*([node.name()] if node else []), *lines]) or "torch"
