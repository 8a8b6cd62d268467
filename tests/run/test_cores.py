"""The cores that a process may use, whatever grants them, and what others make of them."""

import os

import pytest

from pipeline.run import cores


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of 8 cores, as files in two folders."""
    monkeypatch.setattr(cores, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def put(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_cores_are_those_of_the_affinity(monkeypatch):
    assert cores.cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert cores.cores() == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "9900000 100000\n"}, 8),
        # The group in which a limit stands may be one around that of the process.
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "300000 100000\n",
          "cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        # In a container the path may be that of the host, which is not there.
        ({"proc/self/cgroup": "0::/docker/1f\n", "cgroup/cpu.max": "400000 100000\n"}, 4),
        # Version 1, alone and beside an empty version 2.
        ({"proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/a\n0::/\n",
          "cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n",
          "cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "50000\n"}, 3),
        ({"proc/self/cgroup": "1:cpu:/\n", "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"proc/self/cgroup": "1:cpu:/\n", "cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "cgroup/cpu/cpu.cfs_period_us": "0\n"}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_a_container_counts(machine, files, expected):
    put(machine, files)
    assert cores.cores() == expected


def test_load_is_what_others_do_on_these_cores(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    row = "cpu{} {} 5 7 {} 3 1 1 0 0 0\n"
    stat = "cpu  9 9 9 9\n" + "".join(row.format(n, 100, 50) for n in range(3))
    put(machine, {"proc/stat": stat + "intr 7\n"})
    clock = iter((10.0, 10.5))
    monkeypatch.setattr(cores.time, "monotonic", lambda: next(clock))
    later = "".join(row.format(n, 100 + ticks, 90) for n, ticks in enumerate((50, 50, 25)))
    monkeypatch.setattr(cores.time, "sleep", lambda _: put(machine, {"proc/stat": later}))
    monkeypatch.setattr(cores, "_ticks_a_second", lambda: 100)
    assert cores.load() == 1.5


def test_a_system_that_does_not_tell_has_no_load(monkeypatch):
    monkeypatch.setattr(cores, "LOOK", 0)
    assert cores.load() == 0
