"""Files that are written whole or not at all, and the opening of files that the user names."""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.run.errors import UserError


def open_file(path: str | Path) -> BinaryIO:
    """Open a file that the user names for reading, without ever waiting for it.

    Raises:
        OSError: it cannot be opened, or is a folder, or is a pipe, a socket or a device, which
            could keep a reader waiting or reading for ever.
    """
    file = open(path, "rb", opener=_open_now)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "This is a pipe or a device, no file", str(path))


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Within this context a new file is written; at its end it takes the place of ``path``.

    At any moment ``path`` is the old file or the new one, never a part, also after a loss of power.
    Until then the new file lies beside it under a name that nobody can guess, and it is removed if
    the context ends with an exception. Raises OSError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` as ``replacing`` does; raises UserError where that fails.

    The folder is made again if it was removed meanwhile.
    """
    write_together(path.parent, {path.name: content}, "set run.dir to another place")


def write_together(folder: Path, files: dict[str, bytes], way: str) -> None:
    """Write ``files``, contents by names, into ``folder``, which is made where there is none. All
    of them are on the disk before the first takes its place.

    Raises UserError, with the ``way`` to another place, where that fails; what was there before
    stays then.
    """
    is_new, at_work = not folder.exists(), folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for name, content in reversed(files.items()):  # the first entered takes its place last
                at_work = folder / name
                if at_work.is_dir():  # told before any of them takes its place
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                file = stack.enter_context(replacing(at_work))
                file.write(content)
                file.flush()
    except BaseException as error:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty, or not there
                folder.rmdir()
        if not isinstance(error, OSError):
            raise
        raise UserError(f"cannot write {at_work}: {error.strerror}; make room or {way}") from None


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_name(folder: Path) -> str:
    """A name for another folder beside ``folder`` that is not taken yet, such as its own with -2
    behind it."""
    name, number = folder.name[:200], 2
    while (folder.parent / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"
