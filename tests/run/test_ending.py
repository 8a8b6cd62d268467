"""A process whose work is done ends, whatever libraries have left behind."""

import subprocess
import sys
import time

import pytest

from tests import PATIENCE, ROOT

LEFT = {
    "a thread": "threading.Thread(target=time.sleep, args=(999,)).start()",
    "an exit handler": "atexit.register(time.sleep, 999)",
    "a destructor": "sys.last = type('Late', (), {'__del__': lambda self: time.sleep(999)})()",
    "nothing": "",
}
PROGRAM = """
import atexit, sys, threading, time
from launch.command import command
from pipeline.run import ending
from pipeline.run.errors import UserError
sleep, ending.PATIENCE = time.sleep, 1
def main(arguments):
    atexit.register(print, "registered")
    %s
    print("done")
    if arguments:
        raise UserError("wrong")
command(main)
"""


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("words", [(), ("wrong",)])
def test_a_process_ends_with_its_code(left, words):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % LEFT[left], *words],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == (2 if words else 0), done.stderr
    assert time.monotonic() - began < 300  # the rest may be slow
    assert done.stdout.startswith("done\n")
    if left in ("nothing", "a destructor"):
        assert done.stdout == "done\nregistered\n"
    assert done.stderr == ("error: wrong\n" if words else "")
