"""The device's clock, on the stand-in for CUDA: see tests/standin/README.md."""

import json
import subprocess
import sys

import pytest

from launch.bench.cases import Case
from launch.bench.device_clock import CALLS
from tests import PATIENCE, ROOT
from tests.standin import build

REASON = build.obstacle() or ""
IMAGES, PROVIDERS = 4, ("official", "eager", "ours")
CONVOLUTIONS = 7


@pytest.fixture(scope="module")
def found():
    """What ``tests.standin.clock`` finds about every case and provider."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.standin.clock", str(IMAGES), *PROVIDERS],
        cwd=ROOT,
        env=build.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = pytest.mark.slow  # the kernels are compiled
on_the_stand_in = pytest.mark.skipif(bool(REASON), reason=REASON)


@on_the_stand_in
def test_all_that_can_be_is_captured(found):
    """Whole, and without breaking a rule; the official gradient reads o on the host."""
    assert len(found["cases"]) == CONVOLUTIONS + 3 * 3 * len(PROVIDERS)
    for each in found["cases"]:
        _, provider, mode = each["case"]
        waits = provider == "official" and mode != "forward"
        assert each["way"] == ("host" if waits else "graph"), each
        assert each["violations"] == {} and bool(each["waits"]) == waits, each
        assert waits or each["captured"] == each["queued"] >= CALLS, each


@on_the_stand_in
def test_what_cannot_be_captured_is_queued_if_it_does_not_wait(found):
    assert found["ways"] == ["queued", "host"]


@on_the_stand_in
def test_a_cold_pass_is_one_launch_more(found):
    cold = {tuple(each["case"]): each["cold"] for each in found["cases"]}
    assert cold["block", "ours", "both"] == [False, True]
    counts = {tuple(each["case"]): each["captured"] / CALLS for each in found["cases"]}
    sizes = [counts["block", "ours", mode] for mode in ("forward", "backward", "both")]
    assert sizes == [2, 2 + 1, 2 + 2 + 1]


def test_a_pass_is_cold_where_a_training_finds_it_so():
    small, large = (Case("block", "net.layer", (images, 64, 8, 8)) for images in (1, 1000))
    assert [case.is_cold("forward", 2, 50 << 20) for case in (small, large)] == [False, False]
    assert [case.is_cold("forward", 2, 10 << 20) for case in (small, large)] == [False, True]
    assert small.is_cold("backward", 2, 50 << 20)
