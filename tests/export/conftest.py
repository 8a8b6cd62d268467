"""What several tests of exports take."""

import pytest

from tests.export.checkpoints import trained
from tests.native.conftest import instructions, known_sets  # noqa: F401


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The best checkpoint of a short training; its data lie in data/ three folders above."""
    return trained(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def data(checkpoint):
    """The images that it was trained on."""
    return checkpoint.parents[3] / "data"
