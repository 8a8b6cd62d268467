"""Runs that are broken at random moments end as if nothing had happened."""

import random
import sys

import pytest

from tests.faults.harness import FAULTS, Lab, Run, trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("faults"))


def two_processes(fault):
    """A seed of a trial on two processes, another one for each fault."""
    first = 100 * list(FAULTS).index(fault)
    return next(s for s in range(first, first + 100) if random.Random(s).choice([2, 2, 4]) == 2)


# What a rank and torchrun say, as far as it is always said.
SAYS = {
    "SIGKILL": ["going on after"],
    "SIGSTOP": ["does not answer, it hangs or is lost (", "going on after"],
    "signal": ["interrupted; saved", "this job was asked to stop; start another"],
    "full": ["rank 0: error: cannot write", "going on after"],
    "damage": [],
    "resize": ["processes now, 2 before"],
}


@pytest.mark.parametrize("fault", SAYS)
def test_a_run_survives(lab, fault):
    result = trial(lab, two_processes(fault), [fault])
    assert not result.error, result.error
    assert result.faults == [fault]
    said = Run(lab, f"trial{result.seed}", 2).said
    for words in SAYS[fault]:
        assert words in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [("loss", "the training loss is not finite since step 7 (epoch 1)"),
     ("gradient", "the weights are not finite at step 8 (epoch 1)")],
)  # fmt: skip
def test_what_is_not_finite_on_one_rank_stops_all_for_good(lab, kind, words):
    run = Run(lab, f"nan_{kind}", 2, module="tests.faults.poison", overrides=(f"poison={kind}",))
    said = run.start().finish(1).said  # torchrun's own code
    for rank in (0, 1):
        assert said.count(f"rank {rank}: error: {words}") == 4  # each restart says it again
    assert run.lines() == 8  # and does no step
