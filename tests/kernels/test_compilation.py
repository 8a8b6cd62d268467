"""The compilation helper: it sees spilled registers, and says why a kernel does not compile."""

import importlib

import pytest

from tests.kernels.compilation import ARCHS, compile_jobs, job

pytest.importorskip("triton")
op = importlib.import_module("kernels.sign")


def backward(block, num_warps, **arguments):
    pointers = dict.fromkeys(("grad_ptr", "x_ptr", "params_ptr", "dx_ptr"), "*fp32")
    factor = {"FACTOR": "kernels.estimators:ste_factor_triton"}
    arguments = {**pointers, "n": "i32", **factor, "BLOCK": block, **arguments}
    return job(op._backward_kernel, num_warps, **arguments)


def test_usage_of_every_job_on_every_architecture():
    usages = compile_jobs([backward(1024, 4), backward(8192, 1)])
    assert [usage.arch for usage in usages] == [*ARCHS, *ARCHS]
    assert [usage.arguments["BLOCK"] for usage in usages] == [1024] * 3 + [8192] * 3
    for small, large in zip(usages[:3], usages[3:], strict=True):
        assert small.kernel == "kernels.sign:_backward_kernel"
        assert 8 < small.registers < 128 and small.spilled == 0
        assert large.registers > small.registers and large.spilled > 0


def test_the_compiler_says_what_is_wrong():
    with pytest.raises(AssertionError, match="power of 2"):
        compile_jobs([backward(1000, 4)])
