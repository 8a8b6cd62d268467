"""Which lines and operators the launches of a step come from."""

import collections
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import ROOT
from tests.standin import device as standin

OURS = tuple(str(ROOT / room) for room in ("kernels", "models", "pipeline", "launch"))


class Origins(TorchDispatchMode):
    """Counts launches by the operator that makes them and by what called it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        before = _launches()
        result = op(*args, **(kwargs or {}))
        if made := _launches() - before:
            self.counts[f"{op} in {_caller()}"] += made
        return result


def origins(step: Callable[[], object]) -> dict[str, int]:
    """The launches of ``step`` by their origin, most of them first."""
    standin.reset()
    with Origins() as found:
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
