"""Signals that ask a run to stop: heard at once, also in C."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from pipeline.run import signals
from pipeline.run.errors import Interrupted
from pipeline.run.signals import NAMES, StopSignal
from tests import ROOT, first_quick

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
# A step of a minute in C, where no handler of Python's runs.
STUCK = """
import hashlib
from pipeline.run.signals import StopSignal
from pipeline.run.streams import forgive_failures

forgive_failures()
with StopSignal() as stop:
    stop.can_save = True
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
"""


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture(autouse=True)
def hangup_is_not_ignored():
    """Whoever starts the tests may have them ignore SIGHUP, as nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_noted_and_answered(name, capfd):
    with StopSignal() as stop:
        assert not stop.is_asked(1, 9)
        stop.can_save = True
        send(name)
        assert stop.is_asked(2, 9)
    assert stop.signal == getattr(signal, name)
    said = capfd.readouterr().err
    assert said.count(": saving after this step") == 1
    assert ("Ctrl-C again: at once, unsaved" in said) == (name == "SIGINT")


@pytest.mark.parametrize("name", NAMES)
def test_before_anything_can_be_saved_it_ends(name, capfd):
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Interrupted, match="^nothing yet$"), StopSignal("nothing yet"):
        send(name)
        time.sleep(1)
    assert signal.getsignal(getattr(signal, name)) == before
    assert ": ending" in capfd.readouterr().err


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send("SIGHUP")
            assert not stop.is_asked(1, 1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("console", first_quick("pipe", "closed"))
def test_stuck_in_c_it_answers_at_once_and_ends_at_the_second(console):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=(lambda: os.close(2)) if console == "closed" else None,
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    if console == "pipe":
        assert select.select([process.stderr], [], [], 20)[0]
        line = process.stderr.readline().decode()
        assert line == "Interrupt: saving after this step (Ctrl-C again: at once, unsaved)\n"
    else:
        time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def test_processes_look_at_each_others_signals_after_some_steps_or_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(signals.processes, "size", lambda: 2)
    stop = signals.StopSignal()

    def looks(seconds, steps):
        """The steps after which a look was taken."""
        asked, taken = [], []
        monkeypatch.setattr(
            signals.processes, "largest", lambda value: asked.append(value) or value
        )
        for step in range(1, steps + 1):
            clock[0] += seconds
            stop.is_asked(step, 1000)
            if asked:
                taken.append(step)
                asked.clear()
        return taken

    assert looks(0.01, 26) == [1, 9, 17, 25]
    assert looks(0.5, 20)[1:] == [11, 15, 19]  # 2 s, as soon as the steps are known to be slow
    assert looks(40, 5)[1:] == [4, 5]
    assert looks(0.01, 3)[:1] == [1]
    asked = []
    monkeypatch.setattr(signals.processes, "largest", lambda value: asked.append(value) or value)
    for done in (0, 1, 2):  # of a short evaluation
        stop.is_asked(done, 3)
    assert len(asked) == 2
