"""What the tests of trainings share."""

import pytest

from models import ARCHS, register
from tests.data.fixtures import cifar_tree
from tests.train.tiny import TINY


@pytest.fixture(scope="module")
def tiny_arch():
    """A network of 4 to 16 channels, by the name of tiny in a config."""
    register(TINY)
    yield
    del ARCHS["tiny"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A small tree of two classes, drawn once for the tests of a file."""
    return cifar_tree(tmp_path_factory.mktemp("cifar"))
