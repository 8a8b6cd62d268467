"""One process at a time: what two of them would spoil is locked until the first has ended."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.run.errors import UserError


@contextlib.contextmanager
def alone_in(folder: Path, remedy: str) -> Iterator[None]:
    """Within this context no other process that asks for it may work in ``folder``.

    The folder is made where there is none, and taken away again if it is empty at the end. Raises
    UserError with the ``remedy`` while another process is there, and OSError where the folder
    cannot be made.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, remedy):
            yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for each in new:
                each.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, remedy: str) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, f"another process is at work in {folder}; {remedy}")
        yield
    finally:
        os.close(handle)


def lock(handle: int, refusal: str) -> None:
    """Lock the file or folder with this descriptor until it is closed; raises UserError with the
    ``refusal`` where another process has done so. Some file systems know no locks."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(refusal) from None
    except OSError:
        pass
