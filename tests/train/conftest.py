"""What the tests of trainings share."""

import functools

import pytest

from models import ARCHS, Arch, register
from models.resnet_cifar import CifarResNet
from tests.data.fixtures import cifar_tree


@pytest.fixture(scope="module")
def tiny_arch():
    """A network of 4 to 16 channels, by the name of tiny in a config."""
    build = functools.partial(CifarResNet, widths=(4, 8, 16), depth=1)
    register(Arch("tiny", build, 32, "cifar10"))
    yield
    del ARCHS["tiny"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A small tree of two classes, drawn once for the tests of a file."""
    return cifar_tree(tmp_path_factory.mktemp("cifar"))
