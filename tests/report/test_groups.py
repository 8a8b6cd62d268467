"""Which settings differ, and which runs differ in their seed alone."""

from pipeline.report.groups import differing, grouped
from pipeline.report.runs import Run


def run(name, seed="1", **config):
    return Run(name, [], {"seed": seed, "run.name": name, "run.dir": f"in/{name}", **config})


def labels(*runs):
    return [(group.label, [run.name for run in group.runs]) for group in grouped(runs)]


def test_settings_that_differ():
    one, other = run("a", lr="0.1", wd="0"), run("b", "2", lr="0.2", wd="0")
    assert differing([one, other]) == ["seed", "lr"]
    assert differing([one, one]) == differing([one]) == differing([]) == []
    assert differing([one, Run("without settings", [])]) == []


def test_a_setting_that_another_version_lacks_differs():
    assert differing([run("a", lr="0.1"), run("b", lr="0.1", new="x")]) == ["new"]


def test_runs_that_differ_in_their_seed_alone_are_a_group():
    runs = [run("x-1", "1", lr="0.1"), run("y", "1", lr="0.2"), run("x-2", "2", lr="0.1")]
    assert labels(*runs) == [("x-*", ["x-1", "x-2"]), ("y", ["y"])]
    assert labels(*runs[::-1])[0] == ("x-*", ["x-2", "x-1"])


def test_runs_without_settings_stay_alone():
    assert labels(Run("a", []), Run("b", []), run("c")) == [
        ("a", ["a"]),
        ("b", ["b"]),
        ("c", ["c"]),
    ]


def test_groups_have_labels_of_their_own():
    runs = [run(f"x-{i}", lr=lr) for i, lr in enumerate(["0.1", "0.1", "0.2", "0.2"])]
    assert labels(*runs) == [
        ("lr=0.1", ["x-0", "x-1"]),
        ("lr=0.2", ["x-2", "x-3"]),
    ]
    assert labels(run("a", lr="1"), run("b", lr="1")) == [("2 runs", ["a", "b"])]
