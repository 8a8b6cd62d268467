"""What several tests of runs take."""

import logging

import pytest

from pipeline.run import console
from tests.run.fake_wandb import Package


@pytest.fixture
def warnings(monkeypatch, caplog):
    """The warnings so far."""
    monkeypatch.setattr(console.logger, "propagate", True)
    caplog.set_level(logging.WARNING, console.logger.name)
    return lambda: caplog.messages


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package."""
    return Package.install(monkeypatch)
