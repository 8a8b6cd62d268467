"""Where the kernels run, and what the compiler makes of them: once for all tests of the session."""

import pytest
import torch

from tests.kernels.compilation import compile_jobs
from tests.kernels.device import IS_INTERPRETED

QUICK, OTHERS = (90,), (80, 100)  # H100; A100 and B200
OPS = ("count", "crop", "norm", "packing", "pool", "rprelu", "sign", "weights")


@pytest.fixture(autouse=True)
def interpreted(request, monkeypatch):
    """In tests with the mark ``triton``, kernels take tensors of the CPU, where there is no GPU."""
    if IS_INTERPRETED and request.node.get_closest_marker("triton"):
        for op in OPS:
            monkeypatch.setattr(f"kernels.{op}.uses_triton", lambda x: x.dtype != torch.float64)


@pytest.fixture(scope="session")
def all_usages(request):
    """The usages of the jobs of every selected test that takes ``usages``."""
    jobs = {
        (item.module, item.callspec.params["usages"]): None
        for item in request.session.items
        if "usages" in item.fixturenames
    }
    for module, archs in jobs:
        jobs[module, archs] = [
            {**job, "archs": [arch for arch in job["archs"] if arch in archs]}
            for job in module.gpu_jobs()
        ]
    usages = iter(compile_jobs([job for each in jobs.values() for job in each]))
    return {key: [next(usages) for job in each for _ in job["archs"]] for key, each in jobs.items()}


@pytest.fixture(
    params=[QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["H100", "others"]
)
def usages(request, all_usages):
    """The usages of the jobs of this module, which its function ``gpu_jobs`` lists."""
    return all_usages[request.module, request.param]
