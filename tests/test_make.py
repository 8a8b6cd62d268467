"""What a person gives to make reaches the command as it was typed."""

import os
import subprocess

import pytest

from tests.test_house import RESTE, arguments, house, make

__all__ = ["house"]  # a fixture
HARD = [
    "$(shell touch made)",
    "`touch made`",
    "$$(touch made)",
    "${HOME}/$HOME",
    "a; touch made",
    "a' ; touch made '",
    'a" ; touch made "',
    "a # b",
    "a,b",
    "two  blanks",
    "back\\",
    "é*?[a]~",
]


@pytest.mark.parametrize("text", HARD)
def test_values_are_taken_as_they_are_typed(house, text):
    train = [*RESTE, "train", "cifar10_resnet20", f"data.path={text}"]
    assert arguments(house, "cifar10-r20", f"DATA={text}") == train
    assert arguments(house, "cifar10-r20", f"DATA={text}", "GPUS=2")[: len(train)] == train
    loader = [*RESTE, "benchmark", "loader", text, f"train.device={text}"]
    assert arguments(house, "bench-loader", f"CONFIG={text}", f"DEVICE={text}") == loader
    assert arguments(house, "bench-loader", "SWEEP=1")[-1] == "--sweep"
    assert arguments(house, "soak", f"MINUTES={text}")[-1] == text
    built = make(house, "docker-build", f"IMAGE={text}", f"BASE_IMAGE={text}").stdout
    assert built.splitlines() == ["build", "--build-arg", f"BASE_IMAGE={text}", "-t", text, "."]
    done = make(house, "setup", f"BASE_PYTHON={text}")
    assert done.returncode and f"error: {text} is no Python 3.11" in done.stderr
    assert arguments(house, "lint", f"ANYTHING={text}")
    assert not (house / "made").exists()


def test_values_of_the_environment_too(house):
    text = "$(shell touch made)$HOME"
    done = subprocess.run(
        ["make", "-s", "PYTHON=./python", "bench-loader"],
        cwd=house,
        env={"PATH": os.environ["PATH"], "DATA": text, "CONFIG": text},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-2:] == [text, f"data.path={text}"], done.stderr
    assert not (house / "made").exists()


def test_an_interpreter_may_have_blanks(house):
    (house / "python").rename(house / "my python")
    for target, first in (("cifar10-r20", "-P"), ("test", "-m"), ("lint", "-m")):
        done = make(house, "PYTHON=./my python", target)
        assert done.returncode == 0 and done.stdout.startswith(f"{first}\n")


def test_a_folder_for_docker(house):
    text = "$(shell touch made) $HOME"
    (house / text).mkdir()
    done = make(house, "docker-run", f"DATA={text}", 'ARGS=run.name="a b" seed=1').stdout
    assert f"type=bind,source={house}/{text},target=/data,readonly" in done.splitlines()
    assert done.splitlines()[-1] == 'ARGS=run.name="a b" seed=1'
    assert not (house / "made").exists()


def test_args_are_words_that_a_shell_may_quote(house):
    given = """ARGS=a='b c' "d e"=f g\\ h i="it's" -k 'x and (y or z)'"""
    words = ["a=b c", "d e=f", "g h", "i=it's", "-k", "x and (y or z)"]
    assert arguments(house, "quickstart", given) == [*RESTE, "train", "quickstart", *words]


@pytest.mark.parametrize("sign", [*"$`;&|<>", "$(shell touch made)", "$(touch made)"])
def test_args_that_a_shell_would_run_are_refused(house, sign):
    done = make(house, "PYTHON=./python", "quickstart", f"ARGS=a=1 {sign}touch made")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"ARGS holds {sign[0]}, which a shell would take for its own; give" in done.stderr
    assert not (house / "made").exists()


def test_runs_are_words_that_a_shell_may_quote_or_expand(house):
    for name in ("a b", "größer", "c"):
        (house / "runs" / name).mkdir(parents=True)
    compare = [*RESTE, "compare"]
    given = """RUNS=runs/c 'runs/a b' "it's" """
    assert arguments(house, "compare", given) == [*compare, "runs/c", "runs/a b", "it's"]
    assert sorted(arguments(house, "compare", "RUNS=runs/*")[4:]) == [
        f"runs/{name}" for name in ("a b", "c", "größer")
    ]
    assert arguments(house, "compare", "RUNS=a", "ARGS=--metric lr") == [
        *compare,
        "a",
        "--metric",
        "lr",
    ]
    for sign in ("$(touch made)", "`touch made`", "; touch made"):
        done = make(house, "PYTHON=./python", "compare", f"RUNS=a {sign}")
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert f"RUNS holds {sign[0]}, which a shell would take for its own; give" in done.stderr
    assert not (house / "made").exists()


@pytest.mark.parametrize("name", ["DATA", "CONFIG", "ARGS", "GPUS", "CMD", "RUNS"])
def test_a_line_break_is_refused(house, name):
    done = make(house, "PYTHON=./python", "cifar10-r20", f"{name}=a\ntouch made")
    assert done.returncode == 2 and f"{name} holds a line break; give it without" in done.stderr
    assert not (house / "made").exists()


@pytest.mark.parametrize("count", ["1 1", "$(shell touch made)", "2;touch made", "one", "1 2"])
def test_a_number_of_gpus_is_a_number(house, count):
    done = make(house, "PYTHON=./python", "cifar10-r20", f"GPUS={count}")
    assert done.returncode == 2 and "error: GPUS is no number of GPUs" in done.stderr
    assert not (house / "made").exists()
