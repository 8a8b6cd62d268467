"""The house around the sources: commands, requirements, image, citation."""

import importlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests import ROOT
from tests.faults.harness import MEETINGS

TRAININGS = {
    "imagenet-r18": "imagenet_resnet18",
    "imagenet-r34": "imagenet_resnet34",
    "cifar10-r20": "cifar10_resnet20",
    "cifar10-r20-bireal": "cifar10_resnet20_bireal",
    "cifar10-r18": "cifar10_resnet18",
    "cifar10-vgg-small": "cifar10_vgg_small",
}
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
RESTE = ["-P", "-m", "launch"]  # what the launcher gives its interpreter before the command
PARALLEL = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
ECHO = '#!/bin/sh\nprintf "%s\\n" "$@"\n'  # a program that prints its arguments, one per line
# An interpreter whose `-m venv DIR` puts a copy of itself into DIR and whose `-m pip` fails while
# the file `offline` exists. Both leave a line in `log`.
INTERPRETER = """#!/bin/sh
case "$2" in
  venv) echo venv >> log; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  pip) echo pip >> log; test ! -e offline ;;
esac
"""


@pytest.fixture
def house(tmp_path):
    """A checkout with Makefile and launcher alone, beside stand-ins for Python and docker."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name, text in {"python": ECHO, "bin/docker": ECHO, "base": INTERPRETER}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "reste"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(house, *args):
    """Run make there in an environment that this test run's own make did not touch."""
    env = {"PATH": f"{house}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", "-s", *args],
        cwd=house,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def arguments(house, *args):
    done = make(house, "PYTHON=./python", *args)
    assert done.returncode == 0, done.stderr
    assert not (house / ".venv").exists()
    return done.stdout.splitlines()


def extra(*names):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][name] for name in names)]
    return {r.name: r for r in map(Requirement, sum(lists, []))}


@pytest.mark.parametrize("package", ["native", "kernels", "models", "pipeline", "launch"])
def test_packages_are_ours(package):
    assert list(importlib.import_module(package).__path__) == [str(ROOT / package)]


def test_nothing_is_installed():
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"] == []
    )


def test_make_alone_lists_every_target(house):
    phony = (ROOT / "Makefile").read_text().split(".PHONY:")[1].split("\n\n")[0]
    listed = re.findall(r"^  make (\S+) +\S", make(house).stdout, re.M)
    assert listed == phony.replace("\\", "").split()
    assert TRAININGS.keys() <= set(listed)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("quickstart", [*RESTE, "train", "quickstart", "a=1", "b=2"]),
        ("test", ["-m", "pytest", "-m", "not gpu and not slow", *PARALLEL, "a=1", "b=2"]),
        ("test-all", ["-m", "pytest", "-m", "not gpu", *PARALLEL, "a=1", "b=2"]),
        ("test-gpu", ["-m", "pytest", "-m", "gpu or triton", "a=1", "b=2"]),
        (
            "bench-train",
            [*RESTE, "benchmark", "train", "cifar10_resnet20", "a=1", "b=2"],
        ),
        (
            "bench-loader",
            [*RESTE, "benchmark", "loader", "imagenet_resnet18", "a=1", "b=2"],
        ),
    ],
)
def test_commands(house, target, expected):
    assert arguments(house, target, "ARGS=a=1 b=2") == expected


def test_what_make_prints_works_as_printed(house):
    assert make(house, "-n", "quickstart", "PYTHON=./my python").stdout == (
        "PYTHON='./my python' ./reste train quickstart \n"
    )
    (house / ".venv/bin").mkdir(parents=True)
    shutil.copy(house / "python", house / ".venv/bin/python")
    (house / ".venv/.ready").touch()
    assert make(house, "-n", "quickstart").stdout == "./reste train quickstart \n"
    assert make(house, "quickstart").stdout.splitlines() == [*RESTE, "train", "quickstart"]


@pytest.mark.parametrize(("target", "config"), TRAININGS.items())
def test_trainings(house, target, config):
    command = [*RESTE, "train", config]
    assert arguments(house, target) == command
    assert arguments(house, target, "GPUS=1", "ARGS=train.epochs=2 seed=3") == [
        *command,
        "train.epochs=2",
        "seed=3",
    ]
    assert (ROOT / f"configs/{config}.yaml").is_file()


@pytest.mark.parametrize("path", ["/data sets/image net", "/it's", '/a "b" & `c`;d'])
def test_any_path_is_one_argument(house, path):
    assert arguments(house, "imagenet-r18", f"DATA={path}")[-1] == f"data.path={path}"
    assert arguments(house, "bench-loader", f"DATA={path}")[-1] == f"data.path={path}"


def test_several_gpus_go_through_torchrun_after_a_check(house):
    config = "cifar10_resnet20"
    check = [*RESTE, "train", config, "data.path=/it's", "seed=3", "--check=2"]
    torchrun = ["-m", "torch.distributed.run", *MEETINGS["make"]]
    train = ["-m", "launch.train", config, "data.path=/it's", "seed=3"]
    run = [*torchrun, "--nproc-per-node=2", "--max-restarts=3", *train]
    options = ("GPUS=2", "DATA=/it's", "ARGS=seed=3")
    found = arguments(house, "cifar10-r20", *options)
    # A file that is new every time.
    meeting = next(each for each in found if each.startswith("--rdzv-endpoint="))
    found.remove(meeting)
    assert found == [*check, *run] and not Path(meeting.partition("=")[2]).exists()
    for wrong in ("abc", "0", "-1", "2x"):
        done = make(house, "PYTHON=./python", "cifar10-r20", f"GPUS={wrong}")
        assert done.returncode == 2 and "error: GPUS is no number" in done.stderr
    (house / "python").write_text("#!/bin/sh\n[ $1 = -c ] || { echo error: no >&2; exit 2; }\n")
    done = make(house, "PYTHON=./python", "cifar10-r20", *options)
    assert done.returncode == 2 and done.stderr.startswith("error: no\n") and not done.stdout


def test_setup_runs_once_and_repairs(house):
    def setup():
        (house / "log").unlink(missing_ok=True)
        code = make(house, "setup", "BASE_PYTHON=./base").returncode
        return code, (house / "log").read_text().split() if (house / "log").exists() else []

    stamp = house / ".venv/.ready"
    (house / "offline").touch()
    assert setup() == (2, ["venv", "pip"])
    assert not stamp.exists()
    (house / "offline").unlink()
    assert setup() == (0, ["venv", "pip"])  # what the failure left is not trusted
    assert setup() == (0, [])
    later = stamp.stat().st_mtime + 1
    (house / "offline").touch()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(house / name, (later, later))
        assert setup() == (2, ["pip"])
        os.utime(house / name, (1, 1))
    (house / "offline").unlink()
    assert setup() == (0, [])


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        ("", ["-c", "constraints.txt"]),
        ("OLDEST=1", ["-c", ".venv/oldest.txt"]),
        ("LATEST=1", ["--upgrade", "--upgrade-strategy", "eager"]),
    ],
)
def test_setup_installs_what_was_tested_or_what_is_asked_for(house, choice, options):
    (house / ".venv/bin").mkdir(parents=True)
    shutil.copy(house / "python", house / ".venv/bin/python")
    install = ["-m", "pip", "install", "--disable-pip-version-check"]
    everything = ".[torch,test,lint,wandb,plot]"
    expected = [*install, *options, everything]
    assert make(house, "setup", *choice.split()).stdout.splitlines()[: len(expected)] == expected
    again = make(house, "setup", *choice.split()).stdout
    assert bool(again) == (choice == "LATEST=1")  # what is newest may be another one every time
    if choice == "OLDEST=1":
        oldest = (house / ".venv/oldest.txt").read_text().split()
        assert {"torch==2.11", "triton==3.6", "numpy==1.26"} <= set(oldest)


def test_latest_says_what_holds_versions_back(house):
    (house / ".venv/bin").mkdir(parents=True)
    held = '#!/bin/sh\n[ "$4" != list ] || echo "global.constraint=\'/their/versions.txt\'"\n'
    for text, note in ((held, True), (ECHO, False)):
        (house / ".venv/bin/python").write_text(text)
        (house / ".venv/bin/python").chmod(0o755)
        done = make(house, "setup", "LATEST=1")
        assert done.returncode == 0
        assert ("hold versions back: global.constraint='/their" in done.stdout) == note


def test_what_was_tested_lies_within_the_bounds():
    """Every requirement has an upper bound, so that an environment holds no untested version."""
    tested = dict(line.split("<=") for line in CONSTRAINTS if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.-]+", name) for name in tested)
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in tested.items()}
    for name, requirement in extra("torch", "test", "lint", "wandb", "plot").items():
        assert requirement.specifier.contains(names[name.lower()], prereleases=True), name


def test_setup_keeps_an_environment_it_did_not_make(house):
    (house / ".venv/bin").mkdir(parents=True)
    shutil.copy(house / "base", house / ".venv/bin/python")
    assert make(house, "setup").returncode == 0
    assert (house / "log").read_text() == "pip\n"


def test_setup_refuses_an_old_python(house):
    (house / "base").write_text("#!/bin/sh\nexit 1\n")
    done = make(house, "setup", "BASE_PYTHON=./base")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ./base is no Python 3.11 or newer")
    assert not (house / ".venv").exists()


def test_docker_run(house):
    (house / "image net").mkdir()
    done = make(
        house, "docker-run", "DATA=image net", "ARGS=train.epochs=1 seed=2"
    ).stdout.splitlines()
    image = done.index("reste-trainer")
    mounts = {done[i + 1] for i, word in enumerate(done) if word == "--mount"}
    assert mounts == {
        f"type=bind,source={house}/runs,target=/workspace/reste-trainer/runs",
        f"type=bind,source={house}/image net,target=/data,readonly",
    }
    assert done[done.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert done[image + 1 :] == ["make", "imagenet-r18", "DATA=/data", "ARGS=train.epochs=1 seed=2"]
    assert make(house, "docker-run", "CMD=make test").stdout.splitlines()[-2:] == ["make", "test"]


def test_ci_runs_the_commands_of_the_readme():
    commands = re.findall(r"^make .*", (ROOT / ".ci/run").read_text(), re.M)
    assert commands == ["make lint", "make test-all", "make quickstart"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    readme = (ROOT / "README.md").read_text()
    assert [command for command in commands if command not in readme] == []


@pytest.mark.parametrize(
    ("package", "versions"),
    {
        "torch": ["2.11.0", "2.14.0a0+0123abc.nv26.9", "2.15.0"],
        "triton": ["3.6.0", "3.9.0"],
        "torchvision": ["0.29.2"],
        "nvidia-dali-cuda130": ["2.4.0"],
        "pydantic": ["2.11.0"],
    }.items(),
)
def test_requirements_admit_what_we_support(package, versions):
    bounds = extra("torch")[package].specifier
    assert [v for v in versions if not bounds.contains(v, prereleases=True)] == []


def test_image_keeps_its_own_torch():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 1
    extras = installs[0].split("[")[1].split("]")[0].split(",")
    assert "test" in extras
    assert "-c /etc/pip/constraint.txt" in installs[0]
    assert extra(*extras).keys().isdisjoint(extra("torch").keys() - extra().keys())


def test_pip_leaves_nothing_in_the_image():
    """It builds in the folder of the project that it is given, here one that is removed."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    install = next(line for line in lines if "pip install" in line)
    folder = re.findall(r"'([\w/]+)\[", install)[0]
    assert f"COPY pyproject.toml {folder}/" in lines and install.endswith(f"rm -r {folder}")
    assert not folder.startswith(next(line for line in lines if "WORKDIR" in line).split()[1])


def test_image_check_runs(house):
    """The script itself takes root and minutes: its grammar, and how make calls it."""
    check = ROOT / "tests/image/check.sh"
    subprocess.run(["bash", "-n", check], check=True)
    (house / "tests/image").mkdir(parents=True)
    shutil.copy(house / "python", house / "tests/image/check.sh")
    assert arguments(house, "image-check") == ["./python"]


def test_image_takes_a_base_and_drops_root():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line]
    assert lines[0].startswith("ARG BASE_IMAGE=")
    assert lines[1] == "FROM ${BASE_IMAGE}"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and users[-1].split(":")[0] not in ("0", "root")


def test_image_names_its_interpreter_to_the_launcher():
    assert re.search(r"^ENV .*\bPYTHON=python3$", (ROOT / "Dockerfile").read_text(), re.M)


def test_image_leaves_out_what_is_large_or_local():
    assert {".git", ".venv", "data", "runs"} <= set((ROOT / ".dockerignore").read_text().split())


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["references"][0]
    assert "Rectified Straight Through Estimator" in paper["title"]
    authors = [author["family-names"] for author in paper["authors"]]
    assert authors == ["Wu", "Zheng", "Liu", "Zheng"]
    assert (paper["year"], paper["start"], paper["end"]) == (2023, 17055, 17064)
