"""The C++ of a training touches nothing but its own, whatever the sizes and the threads."""

import pytest

from kernels import _native
from native import build
from tests.native import alone


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The program under the address sanitizer and that of undefined behaviour."""
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    folder = tmp_path_factory.mktemp("training")
    try:
        compiler = build._compiler()
        library = build.compiled(compiler, folder, _native.recipe(), options)
    except build.NoLibrary as error:
        pytest.skip(str(error))
    path = folder / "training"
    given = (*build.OPTIONS, *options, "-fopenmp", f"-Wl,-rpath,{folder}")
    alone.run([compiler, *given, alone.HERE / "training.cpp", library, "-o", path])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_nothing_is_touched_beside_the_arrays_and_threads_change_no_bit(checked, seed):
    alone.run([checked, str(seed)])
