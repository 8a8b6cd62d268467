"""Triton where it exists.

On macOS and Windows it does not: ``jit`` then leaves a kernel as a plain function that nothing
launches, because every tensor takes the PyTorch reference.
"""

from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["HAS_TRITON", "jit", "tl", "triton", "uses_triton"]

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    jit = triton.jit
except ImportError:
    HAS_TRITON = False
    triton: Any = None  # type: ignore[no-redef]
    tl: Any = SimpleNamespace(constexpr=None)  # type: ignore[no-redef]

    def jit(function: Any) -> Any:
        """Leave ``function`` as it is."""
        return function


def uses_triton(x: torch.Tensor) -> bool:
    """Whether ``x`` is for the Triton kernels: on a CUDA device and not float64, which exists
    for verification and takes the reference."""
    return HAS_TRITON and x.is_cuda and x.dtype != torch.float64
