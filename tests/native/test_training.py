"""The C++ of a training touches nothing but its own, whatever the sizes and the threads."""

import shutil
from pathlib import Path

import pytest

from kernels import _native
from native import build
from tests.native import alone

pytestmark = pytest.mark.slow


def compiled(compiler, folder, options):
    """The program of training.cpp with the library."""
    options = ("-O1", "-g", *options)
    try:
        library = build.compiled([compiler], folder, _native.recipe(), options)
    except build.NoLibrary as error:  # such as clang without its OpenMP
        pytest.skip(str(error))
    given = (*build.OPTIONS, *options, "-fopenmp", f"-Wl,-rpath,{folder}")
    path = folder / "training"
    alone.run([compiler, *given, alone.HERE / "training.cpp", library, "-o", path])
    return path


@pytest.fixture(scope="module", params=["g++", "clang++"])
def checked(request, tmp_path_factory):
    """The program under the address sanitizer and that of undefined behaviour."""
    if not shutil.which(request.param):
        pytest.skip(f"needs {request.param}")
    return compiled(request.param, tmp_path_factory.mktemp("checked"), alone.ADDRESSES)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The program under the thread sanitizer, which knows OpenMP's barriers by Archer alone, a part
    of clang's OpenMP."""
    clang = shutil.which("clang++")
    found = clang and [*(Path(clang).resolve().parents[1] / "lib").rglob("libarcher.so")]
    if not found:
        pytest.skip("needs clang++ and libarcher.so")
    return compiled("clang++", tmp_path_factory.mktemp("watched"), alone.THREADS), str(found[0])


@pytest.mark.parametrize("seed", range(24))
def test_nothing_is_touched_beside_the_arrays_and_threads_change_no_bit(checked, seed):
    alone.run([checked, str(seed)])


@pytest.mark.parametrize("seed", range(8))
def test_threads_do_not_race(watched, seed):
    path, archer = watched
    alone.run([path, str(seed)], OMP_TOOL_LIBRARIES=archer)
