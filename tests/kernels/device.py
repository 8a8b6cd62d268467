"""Where kernels run: on the GPU in ``make test-gpu``, else in Triton's interpreter."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IS_INTERPRETED = DEVICE == "cpu"  # whose stores of bf16 round towards 0
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # those that Triton's kernels take
TRITON = pytest.param("triton", marks=pytest.mark.triton)
SLOW_TRITON = pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.slow])
