"""What a run says to people: lines and progress, with and without a terminal."""

import errno
import io
import itertools
import os
import re
import sys
import warnings
from types import SimpleNamespace

import pytest

from pipeline.run import console
from pipeline.run.streams import Courtesy


class Terminal(io.StringIO):
    def isatty(self):
        return True


def speak(monkeypatch, stream):
    """Let the logger, and whoever else writes to stderr, write to ``stream``."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console.logger, "handlers", [])
    console.start_console()
    return stream


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_progress_is_a_bar_or_plain_lines(stream, monkeypatch):
    stderr = speak(monkeypatch, stream)
    with console.ProgressBar("epoch 1/2", 4, done=1) as bar:
        bar.advance()
        bar.show(2, 3725.0, loss=1.23456, top1=50.0)
    text = stderr.getvalue()
    if stderr.isatty():
        assert "epoch 1/2" in text and "2/4" in text and "loss 1.235  top1 50" in text
        assert "\033[" in text
    else:
        assert text == "epoch 1/2  step 2/4  loss 1.235  top1 50  1:02:05 left\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_without_width_gets_lines(columns, monkeypatch):
    """Such as a container's before anybody has told its size."""
    import termios

    main, other = os.openpty()
    termios.tcsetwinsize(other, (24, columns))
    with os.fdopen(other, "w") as stream:
        speak(monkeypatch, Courtesy(stream))
        with console.ProgressBar("epoch 1/2", 4) as bar:
            assert bar.bar.disable == (columns == 0)
            bar.show(2, 60.0, loss=1.0)
        said = os.read(main, 4096).decode()
    os.close(main)
    assert ("epoch 1/2  step 2/4  loss 1  1:00 left" in said) == (columns == 0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its ``now`` is set."""
    hand = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def steps(clock, bar, count, seconds):
    for _ in range(count):
        clock.now += seconds
        bar.advance()


def lines(stderr):
    text = stderr.getvalue()
    stderr.truncate(0)
    stderr.seek(0)
    return text.splitlines()


def test_a_speed_may_be_of_something_else_than_images(monkeypatch, clock):
    stderr = speak(monkeypatch, io.StringIO())
    with console.ProgressBar("checksums", 100, images=16, unit="MiB") as bar:
        steps(clock, bar, 8, 4)
    assert "  MiB/s 4  " in lines(stderr)[0]


def test_the_speed_of_the_first_steps_is_told_and_then_less_and_less(monkeypatch, clock):
    stderr = speak(monkeypatch, io.StringIO())
    with console.ProgressBar("epoch 1/3", 1000, images=8, later=2000) as bar:
        steps(clock, bar, 1, 9)  # the first one makes things ready
        steps(clock, bar, 1, 2)
        assert lines(stderr) == ["epoch 1/3  step 2/1000  images/s 4  1:39:56 left"]  # after 10 s
        steps(clock, bar, 1, 2)
        assert lines(stderr) == ["epoch 1/3  step 3/1000  images/s 4  1:39:54 left"]
        steps(clock, bar, 500, 2)
        said = [int(line.split()[3].split("/")[0]) for line in lines(stderr)]
        assert 5 <= len(said) <= 8
        gaps = [after - before for before, after in itertools.pairwise([3, *said])]
        assert gaps == sorted(gaps) and gaps[0] <= 10 and gaps[-1] <= 300
    with console.ProgressBar("epoch 2/3", 5) as bar:
        steps(clock, bar, 5, 2)
        assert lines(stderr) == []


def test_a_long_step_is_told_at_once(monkeypatch, clock):
    stderr = speak(monkeypatch, io.StringIO())
    with console.ProgressBar("evaluation", 9) as bar:
        steps(clock, bar, 1, 40)
        assert lines(stderr) == ["evaluation  step 1/9  images/s 0.025  5:20 left"]


def test_short_work_and_other_lines_leave_nothing_to_tell(monkeypatch, clock):
    stderr = speak(monkeypatch, io.StringIO())
    with console.ProgressBar("decoding train/", 100) as bar:
        steps(clock, bar, 100, 0.01)
    for _ in range(20):
        clock.now += 9
        console.logger.info("an epoch")
        with console.ProgressBar("epoch", 3) as bar:
            steps(clock, bar, 3, 0.1)
    assert lines(stderr) == ["an epoch"] * 20


def test_more_to_show(monkeypatch, clock):
    stderr = speak(monkeypatch, io.StringIO())
    with console.ProgressBar("verify", 99) as bar:
        clock.now += 11
        bar.advance(bad=3)
    assert lines(stderr) == ["verify  step 1/99  images/s 0.09091  bad 3  17:58 left"]
    terminal = speak(monkeypatch, Terminal())
    with console.ProgressBar("verify", 99) as bar:
        bar.advance(bad=3)
        bar.bar.refresh()
    assert "bad 3" in terminal.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_that_fails_is_no_matter(monkeypatch, tmp_path, terminal):
    class Gone(Courtesy):
        def isatty(self):
            return terminal

    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    speak(monkeypatch, Gone(Broken()))
    console.start_file(tmp_path / "log.txt")
    console.logger.warning("look")
    with console.ProgressBar("epoch 1/2", 4) as bar:
        bar.advance()
        bar.show(1, 2.0, loss=1.0)
    console.check_file()
    assert (tmp_path / "log.txt").read_text().splitlines()[0].endswith(" WARNING look")
    speak(monkeypatch, Broken())  # not even where nobody wrapped it
    console.logger.info("a line")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_colours_only_on_a_terminal(stream, monkeypatch):
    stderr = speak(monkeypatch, stream)
    console.logger.info("plain")
    console.logger.warning("look")
    console.logger.info(console.bold("done"))
    assert re.sub(r"\033\[\d+m", "", stderr.getvalue()) == "plain\nwarning: look\ndone\n"
    assert ("\033[" in stderr.getvalue()) == stderr.isatty()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36610, "10:10:10")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text


def test_a_warning_of_python_is_one_line(monkeypatch):
    stderr = speak(monkeypatch, io.StringIO())
    warnings.warn("slower\nthan usual", stacklevel=1)
    assert stderr.getvalue() == "warning: slower than usual\n"
