"""Text files are UTF-8 wherever they are read, and files are written in few places."""

import ast

import pytest

from tests import ROOT

FILES = sorted(
    path
    for room in ("native", "kernels", "models", "pipeline", "launch")
    for path in (ROOT / room).rglob("*.py")
)
TEXT = {"read_text", "write_text", "fdopen", "TextIOWrapper", "NamedTemporaryFile"}
STARTS = {"run", "Popen", "check_output", "check_call", "call"}  # of the module subprocess
# Where a file may be opened for writing: what they offer looks out for links and for full disks.
WRITERS = {
    "pipeline/run/files.py",  # whole files, atomically
    "pipeline/run/lines.py",  # lines at the end of a file
    "pipeline/run/streams.py",  # /dev/null
    "pipeline/prepare/target.py",  # into a hidden folder, under a name of its own
    "pipeline/prepare/verify.py",  # by open_alone of lines.py
    "pipeline/data/synthetic.py",  # into a new folder under a random name
    "native/build.py",  # sources, into a new folder under a random name
    "launch/bench/results.py",  # tables of the checkout
    "launch/bench/inference.py",
    "launch/bench/training.py",  # into a new folder under a random name
    "launch/bench/loaders.py",
    "launch/bench/scaling.py",
}


def calls(path):
    """Each call in a file: its name, its node, and the values of its keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield name, node, {keyword.arg: keyword.value for keyword in node.keywords}


def mode(name, node, keywords):
    """The mode that a call of open gives; the method of a path takes it first."""
    place = 0 if isinstance(node.func, ast.Attribute) else 1
    given = keywords.get("mode") or (node.args[place] if len(node.args) > place else None)
    return given.value if isinstance(given, ast.Constant) else "r"


def is_open(node):
    """Whether it is the builtin, or the method of a path; Image.open and our own are others."""
    if isinstance(node.func, ast.Name):
        return node.func.id == "open"
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return getattr(node.func, "attr", "") == "open" and "path" in ast.unparse(owner).lower()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_has_an_encoding(path):
    for name, node, keywords in calls(path):
        is_text = name in TEXT or is_open(node) and "b" not in mode(name, node, keywords)
        if name in STARTS and "subprocess" in ast.unparse(node.func):
            is_text = {"text", "universal_newlines"} & keywords.keys()
        given = "encoding" in keywords or name == "TextIOWrapper" and len(node.args) > 1
        assert not is_text or given, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_in_few_places(path):
    writes = [
        node.lineno
        for name, node, keywords in calls(path)
        if name in ("write_text", "write_bytes")
        or is_open(node) and set(mode(name, node, keywords)) & set("wax+")
    ]  # fmt: skip
    assert not writes or str(path.relative_to(ROOT)) in WRITERS, writes
