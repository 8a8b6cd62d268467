"""stdout and stderr that may fail: what is said on them is a courtesy, and no reason to end a run.

A disk is full, the reader of a pipe has gone, a terminal was closed. Nothing here imports torch.
"""

import atexit
import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO


class Courtesy:
    """Passes text on to ``stream`` and goes on where that fails; ``error`` keeps the first failure.

    ``stream`` is None where there was none when the process started.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: Exception | None = None
        if stream is None:
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.stream = stream
        if reconfigure := getattr(stream, "reconfigure", None):
            with contextlib.suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")  # a name may have letters that it has not

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error = self.error or error
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def forgive_failures() -> None:
    """Let nothing that this process says end it or change its exit code.

    A file that it opens never takes the place of a standard stream that is closed: what libraries
    print would go into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Courtesy):
            setattr(sys, name, Courtesy(getattr(sys, name)))
    atexit.unregister(drop_what_is_left)
    atexit.register(drop_what_is_left)


def drop_what_is_left() -> None:
    """Write what the standard streams still hold, or drop it where they fail: else the interpreter
    would exit with 120."""
    for descriptor, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        except ValueError:  # it was closed
            continue


def give(text: str) -> None:
    """Print the line that a command was asked for.

    Raises OSError where stdout does not take it.
    """
    print(text, flush=True)
    if error := getattr(sys.stdout, "error", None):
        raise OSError(getattr(error, "errno", None), getattr(error, "strerror", None) or str(error))
