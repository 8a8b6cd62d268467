"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.run.errors import UserError


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
    """Write ``content`` to ``path`` as ``replacing`` does; raises UserError where that fails."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room or set run.dir to another place"
        ) from None


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
