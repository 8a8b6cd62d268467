"""The rooms of the house: who may import whom, without circles, and tests in the same rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

# What the files of a room may import of ours; a room's name covers the rooms within it. Rooms that
# stand further down the list are looked up first.
MAY_IMPORT = {
    "native": ("native",),
    "kernels": ("native", "kernels"),
    "models": ("kernels", "models"),
    "pipeline.run": ("kernels", "models", "pipeline.run"),
    "pipeline.data": ("kernels", "pipeline.run", "pipeline.data"),
    "pipeline.train": ("kernels", "models", "pipeline.run", "pipeline.data", "pipeline.train"),
    "pipeline.report": ("kernels", "pipeline.run", "pipeline.report"),
    "pipeline.export": ("native", "kernels", "models", "pipeline.run", "pipeline.data",
                        "pipeline.train", "pipeline.export"),
    "pipeline.prepare": ("pipeline.run", "pipeline.data", "pipeline.prepare"),
    "launch": ("native", "kernels", "models", "pipeline", "launch"),
}  # fmt: skip
# Packages that not every machine has, and the only files that import them.
OPTIONAL = {
    "apex": {"pipeline/train/optimizer.py"},
    "huggingface_hub": {"pipeline/export/push.py"},
    "matplotlib": {"launch/bench/results.py", "pipeline/report/pictures.py"},
    "onnx": {"launch/bench/peers.py", "pipeline/export/onnx_file.py"},
    "onnxruntime": {"launch/bench/peers.py", "pipeline/export/run_onnx.py"},
    "openvino": {
        "launch/bench/peers.py",
        "pipeline/export/openvino_file.py",
        "pipeline/export/run_openvino.py",
    },
    "nvidia": {"pipeline/data/loader_dali.py"},
    "plotly": {"pipeline/report/page.py"},
    "scipy": {"pipeline/prepare/devkit.py"},
    "triton": {"kernels/_triton.py"},
    "wandb": {"pipeline/report/wandb_runs.py", "pipeline/run/wandb_run.py"},
}
STANDARD = set(sys.stdlib_module_names)
FILES = sorted(
    path
    for room in ("native", "kernels", "models", "pipeline", "launch")
    for path in (ROOT / room).rglob("*.py")
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it; ours by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def is_in(module: str, rooms: tuple[str, ...] | str) -> bool:
    rooms = (rooms,) if isinstance(rooms, str) else rooms
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_room_imports_upward(room):
    upward = {
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others & MODULES.keys()
        if is_in(module, room) and not is_in(other, MAY_IMPORT[room])
    }
    assert not upward


def test_every_file_lies_in_a_room():
    empty = {"pipeline"}  # the package itself
    assert [m for m in MODULES if not is_in(m, tuple(MAY_IMPORT)) and m not in empty] == []
    assert not (ROOT / "pipeline/__init__.py").read_text()


def test_native_needs_numpy_alone():
    """So that a network runs where there is no torch, and is loaded in a tenth of the time."""
    foreign = {
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if is_in(module, "native") and other.partition(".")[0] not in STANDARD | {"native", "numpy"}
    }
    assert not foreign


def test_nobody_imports_a_command():
    """But launch/command.py, which all of them share, and launch/__main__.py, which starts them."""
    commands = {m for m in MODULES if m.startswith("launch.") and m.count(".") == 1}
    commands -= {"launch.command", "launch.bench"}
    users = {m: others & commands for m, others in IMPORTS.items() if m != "launch.__main__"}
    assert {module: found for module, found in users.items() if found} == {}


def test_a_packed_file_is_read_without_torch():
    """What runs it elsewhere starts in a tenth of the time that torch takes to be imported."""
    modules = "pipeline.export.packed_file, pipeline.export.fuse, native.engine"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_no_training_calls_a_candidate():
    users = {m for m, others in IMPORTS.items() if any("candidates" in o for o in others)}
    assert all(is_in(user, ("launch.bench", "kernels.candidates")) for user in users)


def test_there_is_no_circle():
    """Not even one that a late import would hide."""
    left = {module: others & MODULES.keys() for module, others in IMPORTS.items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_packages_are_imported_where_they_are_used(package):
    users = {
        str(MODULES[module].relative_to(ROOT))
        for module, others in IMPORTS.items()
        if any(is_in(other, package) for other in others)
    }
    assert users <= OPTIONAL[package]


def test_the_loop_fits_on_a_few_screens():
    assert len((ROOT / "pipeline/train/trainer.py").read_text().splitlines()) <= 250


def test_tests_stand_in_the_rooms_of_what_they_test():
    rooms = {"native", "kernels", "models", "launch", "faults", "bench"}
    rooms |= {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir()}
    found = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert {room.parts[0] for room in found if room.parts} <= rooms
