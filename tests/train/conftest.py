"""What the tests of trainings share."""

import pytest

from tests.data.fixtures import cifar_tree


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A small tree of two classes, drawn once for the tests of a file."""
    return cifar_tree(tmp_path_factory.mktemp("cifar"))
