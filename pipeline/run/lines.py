"""Text files that grow by whole lines: the records of a run, and what it said."""

import contextlib
import errno
import os
import stat
from pathlib import Path


class LineFile:
    """The file ``path``, to which lines are appended; it is made if there is none.

    A link, a pipe or a device is refused: on a folder that people share, another's file could stand
    behind it. Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "ab", buffering=0, opener=open_alone)  # noqa: SIM115
        self.waiting = b""  # what could not be written yet

    def add(self, line: str) -> None:
        """Append ``line``, whole or not at all.

        Raises OSError where it cannot be written, or where the file does not lie at its path any
        more. The line is kept then, and written with the next one.
        """
        self.waiting += f"{line}\n".encode("utf-8", "backslashreplace")
        self.check()
        size = self.size()
        try:
            written = 0
            while written < len(self.waiting):
                written += self.file.write(self.waiting[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.truncate(size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.waiting = b""

    def check(self) -> None:
        """Raise OSError if the file does not lie at its path any more."""
        mine = os.fstat(self.file.fileno())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            there = os.lstat(self.path)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
        raise OSError(errno.ENOENT, "it was removed or replaced", str(self.path))

    def size(self) -> int:
        """The length of the file in bytes."""
        return os.fstat(self.file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Cut off what stands behind the first ``size`` bytes."""
        self.file.truncate(size)


def open_alone(path: str, flags: int) -> int:
    """An opener for ``open``: it follows no link at the end of ``path`` and never waits. Returns a
    file descriptor; raises OSError where something else than a plain file lies there."""
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, "it is a link", path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no plain file", path)
