"""What the compiler makes of the kernels: one compilation for all tests of the session."""

import pytest

from tests.kernels.compilation import compile_jobs

QUICK, OTHERS = (90,), (80, 100)  # H100; A100 and B200


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
