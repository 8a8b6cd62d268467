"""Where the kernels run, and what the compiler makes of them: once for all tests of the session."""

import fcntl
import os

import pytest
import torch

from tests.kernels.compilation import ARCHS, TYPES, compile_apart, read_usages
from tests.kernels.device import IS_INTERPRETED

# The types of maps and the architectures that kernels are compiled for.
QUICK, ALL = (("*fp16",), (90,)), (TYPES, ARCHS)
OPS = ("count", "crop", "norm", "packing", "pool", "rprelu", "sign", "weights")


@pytest.fixture(autouse=True)
def interpreted(request, monkeypatch):
    """In tests with the mark ``triton``, kernels take tensors of the CPU, where there is no GPU."""
    if IS_INTERPRETED and request.node.get_closest_marker("triton"):
        for op in OPS:
            monkeypatch.setattr(f"kernels.{op}.uses_triton", lambda x: x.dtype != torch.float64)


@pytest.fixture(scope="session")
def all_usages(request, tmp_path_factory):
    """The usages of the jobs of every selected test that takes ``usages``."""
    jobs = {
        (item.module, item.callspec.params["usages"]): None
        for item in request.session.items
        if "usages" in item.fixturenames
    }
    for module, (types, archs) in jobs:
        jobs[module, (types, archs)] = [
            {**job, "archs": [arch for arch in job["archs"] if arch in archs]}
            for job in module.gpu_jobs(types)
        ]
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    text = once(folder / "usages", compile_apart, [job for each in jobs.values() for job in each])
    usages = iter(read_usages(text))
    return {key: [next(usages) for job in each for _ in job["archs"]] for key, each in jobs.items()}


def once(path, make, *arguments):
    """The text of ``make(*arguments)``, which one of pytest's processes makes for all of them."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_text(make(*arguments))
    return path.read_text()


@pytest.fixture(
    params=[QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["fp16 on an H100", "all"]
)
def usages(request, all_usages):
    """The usages of the jobs of this module, which its function ``gpu_jobs`` lists."""
    return all_usages[request.module, request.param]
