"""A training step on the CUDA path, counted without a GPU: see tests/standin/README.md."""

import json
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from tests import PATIENCE, ROOT
from tests.standin import build
from tests.standin import dry_run as command
from tests.standin.dry_run import case, dry_run

EAGER, GRAPH = "eager", "graph"


class Step(NamedTuple):
    """One step to look at."""

    config: str
    precision: str
    ranks: int
    way: str
    parts: int = 1  # train.grad_accumulation
    arch: str = ""  # instead of the config's


class Pinned(NamedTuple):
    """What a step may cost."""

    launches: int  # of each step: of a captured one, that of the graph and two to fill its batch
    nodes: int = 0  # of the graph
    strided: int = 0  # copies among them that go from one layout into another


# ------------------------------------------------------------------- the numbers, to be brought up
# to date by whoever changes them on purpose: a higher one needs a reason.

PINNED = {
    Step("imagenet_resnet18", "fp16", 1, EAGER): Pinned(186),
    Step("imagenet_resnet18", "fp16", 1, GRAPH): Pinned(3, nodes=186),
    Step("imagenet_resnet18", "bf16", 1, EAGER): Pinned(174),
    Step("imagenet_resnet18", "fp16", 1, GRAPH, arch="resnet18_react"): Pinned(3, nodes=229),
    # Its shortcuts take every second pixel: two copies, and two in the backward pass.
    Step("cifar10_resnet20", "bf16", 1, GRAPH): Pinned(1, nodes=172, strided=4),
    Step("imagenet_resnet18", "fp16", 2, EAGER): Pinned(324),
    Step("imagenet_resnet18", "fp16", 2, GRAPH): Pinned(3, nodes=324),
    # Every part has a forward and a backward pass of its own.
    Step("imagenet_resnet18", "fp16", 2, GRAPH, parts=2): Pinned(3, nodes=643, strided=6),
}
COLLECTIVES = {1: 46, 2: 88}  # of a step on two ranks with synchronised batch norm, by its parts
# The host's time of an eager step, as a multiple of that of torchvision's plain resnet18 in the
# same process.
HOST_RATIO = 2.0
TRIES = 3
TORCH = "2.14.1"  # other versions launch other kernels

# -------------------------------------------------------------------

YARDSTICK = case("torchvision")
REASON = build.obstacle() or (
    "" if torch.__version__.split("+")[0] == TORCH else f"counted with torch {TORCH} only"
)
# The kernels are compiled for it, which takes half a minute the first time.
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.slow]
STEPS = [pytest.param(step, id="-".join(map(str, step))) for step in PINNED]
MEASURED = Step("imagenet_resnet18", "fp16", 1, EAGER)  # for its time and its lines
PAIRS = [step for step in STEPS if step.values[0].ranks > 1]
IN_BOTH_WAYS = [
    step
    for step in STEPS
    if step.values[0].way == GRAPH and step.values[0]._replace(way=EAGER) in PINNED
]


def as_case(step):
    overrides = [f"train.precision={step.precision}", "data.batch_size=256"]
    overrides += [f"train.grad_accumulation={step.parts}"]
    overrides += [f"model.arch={step.arch}"] if step.arch else []
    return case(step.config, *overrides, captured=step.way == GRAPH, origins=step == MEASURED)


@pytest.fixture(scope="session")
def results_of():
    """A function that gives what each rank found for a step, or for the yardstick.

    All steps on one rank share one process, and all on two ranks share two.
    """
    found = {}

    def look_up(step):
        ranks = 1 if step == "yardstick" else step.ranks
        if ranks not in found:
            steps = [each for each in PINNED if each.ranks == ranks]
            cases = [as_case(each) for each in steps]
            if ranks == 1:
                steps, cases = [*steps, "yardstick"], [*cases, YARDSTICK]
            found[ranks] = dict(zip(steps, dry_run(cases, ranks), strict=True))
        return found[ranks][step]

    return look_up


@pytest.mark.parametrize("step", STEPS)
def test_launches_of_a_step(step, results_of):
    for result in results_of(step):
        found = Pinned(result["launches"], result["nodes"], PINNED[step].strided)
        assert found == PINNED[step], result["kernels"] | result["graph"]


@pytest.mark.parametrize("step", STEPS)
def test_no_map_is_copied_into_another_layout(step, results_of):
    """Neither by a convolution nor by torch."""
    for result in results_of(step):
        assert result["layout_copies"] == {}
        assert result["strided_copies"] == PINNED[step].strided


@pytest.mark.parametrize("step", STEPS)
def test_no_rule_of_cuda_is_broken(step, results_of):
    """From the making of the network on: devices, memory, and what a capture forbids."""
    assert [result["violations"] for result in results_of(step)] == [{}] * step.ranks


@pytest.mark.parametrize("step", STEPS)
def test_the_host_waits_for_nothing(step, results_of):
    """Neither by a call nor by a copy of memory that is not pinned."""
    for result in results_of(step):
        assert result["waits"] == {}
        assert [name for name in result["copies"] if "pageable" in name] == []


@pytest.mark.parametrize("step", IN_BOTH_WAYS)
def test_a_graph_holds_the_eager_step(step, results_of):
    """A step that is captured launches what the eager one does, in the same numbers."""
    eager = results_of(step._replace(way=EAGER))
    for captured, plain in zip(results_of(step), eager, strict=True):
        assert captured["graph"] == plain["kernels"]


@pytest.mark.parametrize("step", PAIRS)
def test_all_ranks_make_the_same_collectives(step, results_of):
    """In the same order, of the same size and type: otherwise they wait for each other for ever."""
    first, second = (result["collectives"] for result in results_of(step))
    assert first == second and len(first) == COLLECTIVES[step.parts]
    assert {result["rank"] for result in results_of(step)} == {0, 1}


def test_the_host_is_fast_enough():
    """One is timed right behind the other, as the speed of a shared machine changes within minutes,
    and again where it did so between the two."""
    ratios = []
    for _ in range(TRIES):
        ((ours,), (plain,)) = dry_run([as_case(MEASURED), YARDSTICK], 1)
        ratios.append(ours["least_cpu_seconds"] / plain["least_cpu_seconds"])
        if ratios[-1] < HOST_RATIO:
            return
    pytest.fail(f"host time of a step, by torchvision's: {ratios}; {HOST_RATIO} is allowed")


def test_every_launch_has_an_origin(results_of):
    (result,) = results_of(MEASURED)
    assert sum(result["origins"].values()) == result["launches"]
    assert any("norm.py:" in origin for origin in result["origins"])


@pytest.fixture(scope="module")
def breaches():
    """What the stand-in notes when its rules are broken."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.standin.breaches"],
        cwd=ROOT,
        env=build.environment(ranks=2),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("breach", "words"),
    {
        "load_a_kernel_in_a_capture": "a kernel is loaded during a capture",
        "wait_in_a_capture": "cudaStreamSynchronize of a captured stream",
        "leave_a_stream_behind": "before it waited for all streams",
        "work_beside_a_capture": "beside the capture and not part of it",
        "give_memory_of_another_device": "memory on another device",
        "give_memory_of_the_host": "memory that is not on the device",
        "give_memory_that_was_freed": "memory that was freed",
        "mix_layouts": "input (2, 8, 4, 4)",
        "wait_for_the_device": "cudaStreamSynchronize",
    }.items(),
)
def test_the_stand_in_notes_what_is_wrong(breach, words, breaches):
    assert words in breaches[breach][0]


def test_the_stand_in_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.obstacle() == "the stand-in needs g++"


RESULT = {"collectives": ["a"], "violations": {}, "kernels": {"b": 2}, "graph": {}, "origins": {}}
RESULT |= {"waits": {}, "layout_copies": {}, "strided_copies": 0, "launches": 2, "nodes": 0}
RESULT |= {"cpu_seconds": 0.001, "peak_bytes": 2**30}


@pytest.mark.parametrize(
    ("second", "status"),
    [({}, 0), ({"violations": {"wrong device": 1}}, 1), ({"collectives": ["c"]}, 1)],
)
def test_the_command_says_whether_all_is_well(second, status, monkeypatch, capsys):
    asked = []

    def run(cases, ranks):
        asked.append((cases, ranks))
        return [[dict(RESULT), RESULT | second]]

    monkeypatch.setattr(command, "dry_run", run)
    words = ["dry_run", "imagenet_resnet18", "--ranks", "2", "train.precision=fp16"]
    monkeypatch.setattr(sys, "argv", words)
    assert command.main() == status
    assert json.loads(capsys.readouterr().out)["alike"] == ("collectives" not in second)
    assert asked == [([case("imagenet_resnet18", "train.precision=fp16")], 2)]
    monkeypatch.setattr(sys, "argv", [*words, "--table"])
    assert command.main() == status
    assert "2 launches, 0 in the graph, 1 collectives" in capsys.readouterr().out


def test_the_command_names_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dry_run", "imagenet_resnet18", "train.precision=fast"])
    assert command.main() == 2
    assert "train.precision is 'fast'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["dry_run", "nothing"])
    with pytest.raises(SystemExit):
        command.main()
    assert "there is no configs/nothing.yaml" in capsys.readouterr().err
