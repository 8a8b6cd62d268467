"""Runs that are broken at random moments end as if nothing had happened.

Each fault costs two or more starts of all processes, so these tests are slow ones. Of the quick
tests, tests/run/test_processes.py stops a run and goes on with it.
"""

import os
import random
import signal
import sys
from collections import Counter

import pytest

from tests.faults.harness import FAULTS, MEETINGS, Lab, Run, check_same, trial

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.slow,
]


def seed_of(size, meeting):
    """A seed whose trial is of this kind."""

    def kind(seed):
        rng = random.Random(seed)
        return rng.choice([2, 2, 4]), rng.choice(list(MEETINGS))

    return next(seed for seed in range(1000) if kind(seed) == (size, meeting))


# What is always said, by a rank or by torchrun; besides, each time, that the run goes on.
SAYS = {
    "SIGKILL": [],
    "SIGSTOP": ["does not answer, it hangs or is lost ("],
    "signal": ["interrupted; saved", "this job was asked to stop; start another"],
    "full": ["rank 0: error: cannot write"],
    "stop": ["interrupted; saved"],
    "orphans": ["interrupted; saved"],
    "power": [],
    "torn": [],
    "cut": ["going on from the one before"],
    "flip": [],
    "resize": ["processes now, 2 before"],
}


# Together, since each life of a run costs the start of all its processes.
TRIED = [
    (("SIGKILL", "full", "stop"), "make"),
    (("signal", "cut", "orphans"), "make"),
    (("SIGSTOP", "flip", "power"), "make"),
    (("torn", "resize"), "make"),
    (("SIGKILL",), "two nodes"),
    (("signal",), "standalone"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """With runs that are long enough for three faults."""
    return Lab(tmp_path_factory.mktemp("faults"), epochs=5)


def test_every_fault_is_tried():
    assert {fault for faults, _ in TRIED for fault in faults} == FAULTS.keys() == SAYS.keys()


@pytest.mark.parametrize(("faults", "meeting"), TRIED)
def test_a_run_survives(lab, faults, meeting):
    name = "_".join([*faults, meeting])
    result = trial(lab, seed_of(2, meeting), list(faults), name, earliest=7)  # an epoch was saved
    assert not result.error, result.error
    assert result.faults == list(faults)
    said = Run(lab, name, 2).said
    assert said.count("going on after") == len(faults)
    for words, count in Counter(words for fault in faults for words in SAYS[fault]).items():
        assert said.count(words) >= count


def test_a_signal_in_evaluation(lab):
    run = Run(lab, "evaluation", 2, module="tests.faults.poison", overrides=("poison=evaluation",))
    assert "saved" in run.start().finish(1).said
    assert run.lines() == 5  # an epoch's steps, but not yet its end
    run.module, run.overrides, run.size = "launch.train", (), 1
    check_same(run.start().finish(), lab.reference(1), 1e-9)  # and on without torchrun


@pytest.mark.parametrize(
    ("kind", "words"),
    [("loss", "the training loss is not finite since step 7 (epoch 1)"),
     ("gradient", "the weights are not finite at step 8 (epoch 1)")],
)  # fmt: skip
def test_what_is_not_finite_on_one_rank_stops_all_for_good(lab, kind, words):
    run = Run(lab, f"nan_{kind}", 2, module="tests.faults.poison", overrides=(f"poison={kind}",))
    run.restarts = 1
    said = run.start().finish(1).said  # torchrun's own code
    assert said.count(f"error: {words}") == 2  # once for all ranks; the restart says it again
    assert "rank 0: error" not in said
    assert run.lines() == 8  # and does no step


def test_a_new_run_that_torchrun_restarts_is_its_own(lab):
    """run.resume=none refuses the runs of others."""
    run = Run(lab, "fresh", 2, overrides=("run.resume=none",)).start()
    assert run.wait_until(lambda: run.lines() > 3)
    os.kill(run.workers()[1], signal.SIGKILL)
    check_same(run.finish(), lab.reference(2))
    assert "holds a run already" in run.start().finish(1).said


def test_two_processes_do_not_train_the_same_run(lab):
    run = Run(lab, "twice", 1).start()
    assert run.wait_until(lambda: run.lines() > 1)
    os.kill(run.workers()[0], signal.SIGSTOP)  # else it may be over before the other has begun
    try:
        other = Run(lab, "twice", 1).start().finish(2)
    finally:
        os.kill(run.workers()[0], signal.SIGCONT)
    assert "error: another process is training this run" in other.said
    check_same(run.finish(), lab.reference(1))
