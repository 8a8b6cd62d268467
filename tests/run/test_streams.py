"""A console that fails: nothing that is said ends a command or changes its exit code."""

import errno
import io
import os
import subprocess
import sys

import pytest

from pipeline.run.streams import Courtesy, give
from tests import ROOT

COMMAND = """
import sys
from launch.command import answer, command
from pipeline.run.errors import Diverged, Interrupted, UserError

ENDS = {{0: None, 2: UserError("x"), 3: Diverged("x"), 129: Interrupted(1, "x")}}

def main(_):
    for _ in range(3000):
        print("a line that nobody reads", file=sys.stderr)
    if ENDS[{code}]:
        raise ENDS[{code}]
    open("kept", "w").write("x")
    {last}

command(main)
"""
# How a shell starts a command whose console fails; the exit code of the command itself is kept.
CONSOLES = {
    "a full disk": "{} 2>/dev/full; echo $? > code",
    "closed": "{} 2>&-; echo $? > code",
    "all closed": "{} <&- >&- 2>&-; echo $? > code",
    "only readable": "{} 2</dev/null; echo $? > code",
    "a reader that has gone": "( {}; echo $? > code ) 2>&1 | true",
}
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


def start(folder, line, code=0, last="pass"):
    """The exit code of the command, and what it said, as ``line`` of a shell starts it."""
    (folder / "command.py").write_text(COMMAND.format(code=code, last=last))
    done = subprocess.run(
        ["sh", "-c", line.format(f"{sys.executable} command.py")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return int((folder / "code").read_text()), done.stderr


@needs_full
@pytest.mark.parametrize("console", CONSOLES)
def test_the_exit_code_stays(tmp_path, console):
    for code in (0, 2, 3, 129):
        assert start(tmp_path, CONSOLES[console], code) == (code, "")
    assert (tmp_path / "kept").read_text() == "x"  # nothing said went into a file


@needs_full
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{} >/dev/full; echo $? > code", "No space left on device"),
        ("{} >&-; echo $? > code", "Bad file descriptor"),
        ("( {}; echo $? > code ) | true", "Broken pipe"),
    ],
)
def test_a_result_that_nobody_gets_is_an_error(tmp_path, line, reason):
    code, said = start(tmp_path, line, last="import time; time.sleep(0.3); answer('{}')")
    error = said.replace("a line that nobody reads\n", "")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: stdout does not take the result: {reason}; ")


def test_help_may_be_cut_short(tmp_path):
    line = "( {}; echo $? > code ) | true"
    assert start(tmp_path, line, last="print('help ' * 9999)")[0] == 0


class Failing(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        raise ValueError("I/O operation on closed file")


def test_a_courtesy_keeps_the_failure():
    stream = Courtesy(Failing())
    assert stream.write("text") == 4
    stream.flush()
    stream.writelines(["a", "b"])
    assert isinstance(stream.error, OSError) and not stream.isatty()
    good = Courtesy(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    good.write("é\udcff")  # a name in another encoding
    good.flush()
    assert good.error is None and good.buffer.getvalue() == b"\\xe9\\udcff"


def test_a_result_is_given(capsys):
    give("text")
    assert capsys.readouterr().out == "text\n"
