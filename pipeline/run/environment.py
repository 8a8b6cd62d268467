"""The numbers that torchrun leaves in the environment of its processes. Nothing here imports torch.

Where something else wrote them, or a part of them was lost, they are not believed.
"""

import os
import re
import shlex

from pipeline.run.errors import UserError

MOST_PROCESSES = 2**20
ALONE = "WORLD_SIZE"  # without it, a process trains by itself


def number(name: str, low: int, high: int, default: int | None = None) -> int:
    """The number in the variable ``name``, or ``default`` where it is unset or empty.

    Raises UserError for any text but a whole number between ``low`` and ``high``.
    """
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        shown = shlex.quote(text[:40]) if text.isprintable() else repr(text[:40])
        words = " ".join(dict.fromkeys((ALONE, name)))
        raise UserError(
            f"the environment's {name}={shown} is no whole number between {low} and "
            f"{high}; start the processes with torchrun, or train in one process after: "
            f"unset {words}"
        )
    return int(text)


def world_size() -> int:
    """How many processes were started together; 1 where nothing says so."""
    return number("WORLD_SIZE", 1, MOST_PROCESSES, default=1)


def processes_here() -> int:
    """How many of them are on this machine; 0 where nothing says so."""
    return number("LOCAL_WORLD_SIZE", 1, MOST_PROCESSES, default=0)


def restarts() -> int:
    """How often torchrun has started its processes again."""
    return number("TORCHELASTIC_RESTART_COUNT", 0, 10**9 - 1, default=0)


def place() -> tuple[int, int] | None:
    """The rank of this process on its machine and among all, where torchrun started it together
    with others; None where it did not, or where the numbers are none."""
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    if not os.environ.get("TORCHELASTIC_RUN_ID") or not all(map(os.environ.get, names)):
        return None
    try:
        local, rank, size = (number(name, 0, MOST_PROCESSES) for name in names)
    except UserError:
        return None
    return (local, rank) if size > 1 else None
