"""Triton on the systems that have it.

macOS and Windows do not. There ``jit`` leaves a kernel as a plain function, and nothing launches it
because every tensor takes the PyTorch reference.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

__all__ = [
    "HAS_TRITON",
    "arrivals",
    "is_last",
    "is_watched",
    "jit",
    "launcher_fault",
    "tl",
    "triton",
    "uses_triton",
]

ARRIVALS = 4096  # counters: the most groups of programs that one launch may have

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


def launcher_fault() -> Exception | None:
    """Why Triton cannot build what launches its kernels, which takes a C compiler the first time,
    or None; needs a CUDA device."""
    try:
        HAS_TRITON and triton.runtime.driver.active  # noqa: B018, since looking at it builds it
    except Exception as error:  # there are many reasons, and Triton has no class for them
        return error
    return None


def is_watched() -> bool:
    """Whether torch.compile traces the program or a profiler records it.

    They see registered ops only. Otherwise kernels are launched without going through those, which
    cost the host more time than the launches.
    """
    return torch.compiler.is_compiling() or torch._C._autograd._profiler_enabled()


def arrivals(like: torch.Tensor) -> torch.Tensor:
    """Counters for ``is_last``, all 0: (ARRIVALS,) int32 on the device of ``like``.

    Kernels of one stream never overlap, so all of them share one tensor.
    """
    # torch.cuda.current_stream takes ten times as long.
    stream = torch._C._cuda_getCurrentRawStream(like.get_device()) if like.is_cuda else 0
    return _arrivals(like.device, stream)


@cache
def _arrivals(device: torch.device, stream: int) -> torch.Tensor:
    return torch.zeros(ARRIVALS, dtype=torch.int32, device=device)


INTERPRETED = HAS_TRITON and triton.knobs.runtime.interpret  # on a CPU, which has no such assembly

if INTERPRETED:

    @jit
    def log2(x):  # type: ignore[no-untyped-def]
        """log2 of fp32 in one instruction, for normal numbers: PTX states an error of 2^-22."""
        return tl.log2(x)

    @jit
    def exp2(x):  # type: ignore[no-untyped-def]
        """2^x of fp32 in one instruction: PTX states a relative error of 2^-22."""
        return tl.exp2(x)

else:

    @jit
    def log2(x):  # type: ignore[no-untyped-def]
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @jit
    def exp2(x):  # type: ignore[no-untyped-def]
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@jit
def is_last(arrivals_ptr, programs):  # type: ignore[no-untyped-def]
    """Whether this is the last of ``programs`` programs to come here.

    What the others stored before they came can then be read, past the L1 cache: it saves the launch
    of a kernel that only puts partial results together. The counter is left at 0.
    """
    tl.debug_barrier()  # all threads of this program have stored what they had to
    last = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(arrivals_ptr, 0)
    return last
