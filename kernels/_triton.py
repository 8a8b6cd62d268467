"""Triton on the systems that have it.

macOS and Windows do not. There ``jit`` leaves a kernel as a plain function, and nothing launches it
because every tensor takes the PyTorch reference.
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
        """Return ``function`` unchanged."""
        return function


def uses_triton(x: torch.Tensor) -> bool:
    """Whether the Triton kernels take ``x``: it is on a CUDA device and not float64.

    float64 is there for verification and takes the reference.
    """
    return HAS_TRITON and x.is_cuda and x.dtype != torch.float64
