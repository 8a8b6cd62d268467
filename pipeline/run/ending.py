"""The end of a process, which nothing that a library left behind holds up.

A thread that is never done, a pool of processes that waits for one of them, a destructor: each may
keep an interpreter, all of whose work is done, from ending. Nothing here imports torch.
"""

import atexit
import os
import threading

from pipeline.run.streams import drop_what_is_left

PATIENCE = 60.0  # seconds that libraries get to end what they began

_codes: list[int] = []  # the exit code, once the end has begun


def prepare() -> None:
    """Make ready for ``end_soon``. A command calls it before it imports libraries: Python does
    last at exit what was registered first."""
    atexit.unregister(_end)
    atexit.register(_end)


def end_soon(code: int) -> None:
    """Let this process, which is about to exit, do so with ``code`` and within ``PATIENCE``.

    What libraries have registered for the exit is done, if it does not take longer; the
    interpreter is not taken apart after it.
    """
    _codes[:] = [code]
    limit = threading.Timer(PATIENCE, _end)
    limit.daemon = True
    limit.start()


def _end() -> None:
    if _codes:
        drop_what_is_left()
        os._exit(_codes[0])
