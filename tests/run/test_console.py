"""What a run says to people: lines and progress, with and without a terminal."""

import io
import re
import sys

import pytest

from pipeline.run import console


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
