"""What several tests of reports take."""

import pytest

from tests.run.fake_wandb import Package


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package."""
    return Package.install(monkeypatch)
