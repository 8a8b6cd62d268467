"""What every test needs before the first kernel is imported."""

import gc
import logging
import os

# One thread in each process, as tensors are small here. Threads that wait for each other spin: on a
# machine that has other work, too, they keep the core from the one that they wait for, and tests
# took up to 40 times as long. Read when torch and NumPy are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# A session either compiles Triton's kernels or interprets them, as this says when they are loaded.
# Only compiled ones need a GPU: it is hidden from all others, and from the processes that they
# start, so that they are the same on every machine.
IS_INTERPRETED = os.environ.setdefault("TRITON_INTERPRET", "1") != "0"
if IS_INTERPRETED:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

settings.register_profile("house", deadline=None)  # a first call compiles
settings.load_profile("house")


def pytest_configure() -> None:
    # device_count asks NVML: unlike is_available, it leaves CUDA uninitialised.
    if not IS_INTERPRETED and torch.cuda.device_count() == 0:
        raise pytest.UsageError("TRITON_INTERPRET=0 needs a GPU, and torch finds none; unset it")


@pytest.fixture(autouse=True)
def silent_console():
    """A command that a test ran has started the console: end it."""
    yield
    logger = logging.getLogger("reste")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """A training that a test runs draws no picture, which takes a second, unless the test has the
    mark ``pictures``."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("pipeline.report.plots.draw_run", lambda folder: None)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Data, a config and the undisturbed runs that tests of several processes compare with."""
    from tests.faults.harness import Lab

    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def tiny_arch():
    """A network of 4 to 16 channels, by the name of tiny in a config."""
    from models import ARCHS, register
    from tests.train.tiny import TINY

    register(TINY)
    yield
    del ARCHS["tiny"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if IS_INTERPRETED and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: make test-gpu"))
    items.sort(key=lambda item: item.path.stem != "test_processes")  # the longest file comes first


def pytest_collection_finish() -> None:
    """What is loaded by now stays until the end: nobody need look through it for garbage again, as
    a loader of files does before it forks its workers."""
    gc.collect()
    gc.freeze()
