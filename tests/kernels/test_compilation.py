"""The compilation helper: it sees spilled registers, and says why a kernel does not compile."""

import pytest

from kernels import sign as op
from tests.kernels.compilation import compile_jobs, job

pytest.importorskip("triton")


def backward(block, num_warps):
    pointers = dict.fromkeys(("grad_ptr", "x_ptr", "params_ptr", "dx_ptr"), "*fp32")
    factor = "kernels.estimators.ste:triton_factor"
    return job(op._backward_kernel, num_warps, **pointers, n="i32", FACTOR=factor, BLOCK=block)


def gpu_jobs(types):
    return [backward(1024, 4), backward(4096, 1)]


def test_usage_of_every_job_on_every_architecture(usages):
    half = len(usages) // 2
    for small, large in zip(usages[:half], usages[half:], strict=True):
        assert small.arch == large.arch
        assert (small.arguments["BLOCK"], large.arguments["BLOCK"]) == (1024, 4096)
        assert small.kernel == "kernels.sign:_backward_kernel"
        assert 8 < small.registers < 128 and small.spilled == 0
        assert large.registers > small.registers and large.spilled > 0


@pytest.mark.slow
def test_the_compiler_says_what_is_wrong():
    with pytest.raises(AssertionError, match="power of 2"):
        compile_jobs([backward(1000, 4)])
