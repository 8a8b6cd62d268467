"""The cores of this machine that a process may use, and how busy others keep them.

Nothing here imports torch.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LOOK = 0.2  # seconds for which the load of other programs is watched


def cores() -> int:
    """The cores that this process may use at a time: those of its affinity, or fewer where a
    container has a quota of their time."""
    return max(1, min(len(affinity()), int(min(_quotas(), default=len(affinity())))))


def affinity() -> set[int]:
    """The numbers of the cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """The limits in cores of the control groups that this process is in, and of those around them:
    version 2 (cpu.max) and version 1 (cpu.cfs_quota_us)."""
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [CGROUPS, CGROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [CGROUPS / controllers, CGROUPS / "cpu"]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (root / each for root in roots for each in (inner, *inner.parents)):
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    words = _read(folder / "cpu.max").split() or [
        *_read(folder / "cpu.cfs_quota_us").split(),
        *_read(folder / "cpu.cfs_period_us").split(),
    ]
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])  # "max" and -1 are no limits


def load() -> float:
    """How many cores of this process's other programs keep busy; it watches for ``LOOK`` seconds.
    0 where the system does not tell."""
    before, began = _busy(), time.monotonic()
    time.sleep(LOOK)
    ticks = _busy() - before
    return max(0.0, ticks / _ticks_a_second() / (time.monotonic() - began))


def _busy() -> int:
    """The time, in ticks, for which the cores of this process have been at work until now."""
    names = {f"cpu{number}" for number in affinity()}
    rows = (line.split() for line in _read(PROC / "stat").splitlines() if line.startswith("cpu"))
    # user, nice, system, and, behind idle and iowait, irq, softirq, steal
    return sum(sum(map(int, row[1:4] + row[6:9])) for row in rows if row[0] in names)


def _ticks_a_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
