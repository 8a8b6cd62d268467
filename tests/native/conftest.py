"""The instruction sets that tests of the library run on, where this machine can build it."""

import pytest

from native import build
from native.engine import instruction_sets


@pytest.fixture(scope="session")
def known_sets():
    """The instruction sets of this processor."""
    try:
        return instruction_sets()
    except build.NoLibrary as error:
        pytest.skip(str(error))


@pytest.fixture(params=["amx", "avx512", "avx2", "neon", "portable"])
def instructions(request, known_sets):
    """Each instruction set that this processor has."""
    if request.param not in known_sets:
        pytest.skip(f"this processor has no {request.param}")
    return request.param
