"""As many loader threads or processes as the machine bears."""

import os
import threading

import pytest

from pipeline.data import workers
from pipeline.run.config import make_config
from pipeline.run.errors import UserError


def limited(wanted):
    return workers.limit_workers(
        make_config({}, ["run.name=x", f"data.workers={wanted}"])
    ).data.workers


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(workers.logger, "propagate", True)
    caplog.set_level("INFO", workers.logger.name)
    return lambda: [each for each in caplog.messages if "data.workers" in each]


def threads_at_most(monkeypatch, count):
    """As if a limit let this process start ``count`` threads."""
    started = []

    class Thread(threading.Thread):
        def start(self):
            if len(started) >= count:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    monkeypatch.setattr(workers.threading, "Thread", Thread)


def test_what_a_machine_bears_is_taken_as_it_is(lines):
    assert [limited(n) for n in (0, 1, 8)] == [0, 1, 8] and lines() == []


def test_too_many_are_fewer_with_a_line(lines, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert limited(1000) == 24
    assert lines() == ["data.workers: 1000 -> 24, as this process has 6 cores"]


def test_a_limit_of_threads_is_found(lines, monkeypatch):
    before = threading.active_count()
    threads_at_most(monkeypatch, 2 * 3 + workers.SPARE + 1)
    assert limited(8) == 3
    assert lines() == ["data.workers: 8 -> 3, as no more can be started"]
    assert threading.active_count() == before


@pytest.mark.parametrize("wanted", [1, 1000])
def test_where_none_can_be_started_a_line_says_so(monkeypatch, wanted):
    threads_at_most(monkeypatch, 3)
    with pytest.raises(UserError, match=f"data.workers={wanted}, but .* 3 threads only; raise"):
        limited(wanted)
