"""As many threads as a machine grants and others leave, or as a person asks for."""

import pytest
import torch

from pipeline.run import threads
from pipeline.run.config import make_config
from pipeline.run.threads import choose, settle_threads


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 8 cores, of which nobody uses any."""
    for name in (threads.NAME, "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "affinity", lambda: set(range(8)))
    monkeypatch.setattr(threads, "cores", lambda: 8)
    busy(monkeypatch, 0)


def busy(monkeypatch, number):
    monkeypatch.setattr(threads, "load", lambda: number)


def test_cores_that_others_keep_busy_are_left_to_them(monkeypatch):
    assert choose(None) == (8, "this process may use 8 cores")
    busy(monkeypatch, 2.6)
    assert str(choose(None)) == (
        "5 threads: other programs keep 3 of 8 cores busy; train.threads=8 takes all"
    )
    assert choose(None, looks=False).threads == 8
    busy(monkeypatch, 0.4)
    assert choose(None).threads == 8
    busy(monkeypatch, 20)
    assert str(choose(None)).startswith("1 thread: other programs keep 20 of 8 cores busy")


def test_a_quota_is_not_lessened_by_those_who_use_other_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    busy(monkeypatch, 6)
    assert choose(None).threads == 2
    busy(monkeypatch, 7)
    assert choose(None).threads == 1


def test_a_person_decides_but_never_takes_more_than_there_are(monkeypatch):
    busy(monkeypatch, 8)
    assert choose(3) == (3, "train.threads")
    assert str(choose(64)) == ("8 threads: train.threads=64, but this process may use 8 cores")
    monkeypatch.setenv(threads.NAME, "64")
    assert choose(None) == (8, "OMP_NUM_THREADS=64, but this process may use 8 cores")
    assert choose(2).threads == 2
    monkeypatch.setenv(threads.NAME, "2,1")  # of nested regions
    assert choose(None) == (2, "OMP_NUM_THREADS")
    for text in ("", "many", "0", "-1"):
        monkeypatch.setenv(threads.NAME, text)
        assert choose(None).threads == 1


@pytest.mark.parametrize(("processes", "expected"), [(2, 4), (3, 2), (8, 1), (20, 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, processes, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    busy(monkeypatch, 8)
    monkeypatch.setenv(threads.NAME, "1")  # as torchrun sets it for everybody
    assert choose(None, 7) == (expected, f"{processes} processes share 8 cores")
    monkeypatch.setenv(threads.NAME, "3")
    assert choose(None) == (3, "OMP_NUM_THREADS")


def test_a_run_goes_on_with_its_number(monkeypatch):
    busy(monkeypatch, 4)
    assert choose(None, 6) == (6, "as the run began")
    assert choose(None, 9).threads == 4  # on a smaller machine
    assert choose(2, 6).threads == 2


@pytest.fixture
def kept():
    """The threads of the tests stay what they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_choice_is_taken_said_and_kept(kept, monkeypatch, caplog):
    monkeypatch.setattr(threads.logger, "propagate", True)
    caplog.set_level("INFO", threads.logger.name)
    busy(monkeypatch, 5)
    config = settle_threads(make_config({}, ["run.name=x"]))
    assert config.train.threads == torch.get_num_threads() == 3
    assert caplog.messages[-1].startswith("3 threads: other programs keep 5 of 8 cores busy")
    exact = make_config({}, ["run.name=x", "deterministic=true"])
    assert settle_threads(exact).train.threads == 8  # whatever others do
