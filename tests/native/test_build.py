"""How the library is built and kept, and what is said where it cannot be."""

import errno
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from native import build
from tests import ROOT

FAKE = """#!/bin/sh
# A compiler that leaves a line for each of its runs, and an empty file.
echo run >> {log}
while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done
: > "$1"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder and a compiler of one's own; ``place / "log"`` counts the compiler's runs."""
    compiler = tmp_path / "compiler"
    compiler.write_text(FAKE.format(log=tmp_path / "log"))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def built(recipe=build.ENGINE):
    return build.library.__wrapped__(recipe)


def runs(place):
    log = place / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_it_is_built_once_and_kept_for_oneself(place, caplog):
    path = built()
    assert path.parent == place / "cache/reste-trainer" and runs(place) > 0
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]
    before = runs(place)
    with caplog.at_level("INFO", "reste"):
        assert built() == path and runs(place) == before
    assert not caplog.messages


def test_what_takes_long_is_told(place, caplog):
    with caplog.at_level("INFO", "reste"):
        built()
    assert caplog.messages == ["C++ is compiled for this processor, once: 5 to 15 seconds"]


@pytest.mark.parametrize("what", ["source", "option", "compiler"])
def test_what_it_is_made_of_makes_another(place, what, monkeypatch, tmp_path):
    path, recipe = built(), build.ENGINE
    if what == "option":
        monkeypatch.setattr(build, "OPTIONS", (*build.OPTIONS, "-g"))
    elif what == "compiler":
        with open(place / "compiler", "a") as file:
            file.write("# another\n")
    else:
        (copy := tmp_path / "sources").mkdir()
        for source in build.HERE.glob("*.[ch]*"):
            (copy / source.name).write_bytes(source.read_bytes() + b"\n")
        recipe = replace(build.ENGINE, folder=copy)
    assert built(recipe) != path


def test_what_was_damaged_is_built_anew(place):
    path = built()
    path.write_bytes(b"cut short")
    before = runs(place)
    assert built() == path and path.read_bytes() == b"" and runs(place) > before


def test_a_compiler_may_have_several_words(place, monkeypatch):
    launcher = place / "launcher"
    launcher.write_text(f'#!/bin/sh\necho launched >> {place / "launched"}\nexec "$@"\n')
    launcher.chmod(0o755)
    alone = built()
    monkeypatch.setenv("CXX", f"{launcher} {place / 'compiler'} -some-option")
    assert built() != alone
    assert len((place / "launched").read_text().splitlines()) == runs(place) / 2 > 0
    with open(place / "compiler", "a") as file:
        file.write("# another\n")
    before = runs(place)
    built()
    assert runs(place) > before


def test_a_folder_that_others_may_write_to_is_not_trusted(place):
    path = built()
    path.parent.chmod(0o777)
    own = built()
    assert own.parent != path.parent and own.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/null/... to be no folder")
def test_without_a_cache_folder_a_process_keeps_its_own(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert built().exists()


def test_a_cache_folder_that_is_full_is_done_without(place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build.shutil, "copy", full)
    assert built().read_bytes() == b"" and os.listdir(place / "cache/reste-trainer") == []


def test_where_nothing_can_be_written_a_line_says_so(place, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(build.tempfile, "mkdtemp", refuse)
    with pytest.raises(build.NoLibrary, match="no temporary file can be written: Read-only file"):
        built()


def test_a_compiler_that_fails_is_quoted_in_one_line_and_leaves_nothing(place):
    (place / "compiler").write_text("#!/bin/sh\necho 'a.cpp:1: error: no such flag' >&2; exit 1\n")
    with pytest.raises(build.NoLibrary) as failure:
        built()
    assert str(failure.value) == f"{place / 'compiler'} fails: a.cpp:1: error: no such flag"
    assert os.listdir(place / "cache/reste-trainer") == []


def test_without_a_compiler_a_line_says_what_to_install(place, monkeypatch):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(build.NoLibrary, match=r"no C\+\+ compiler; install g\+\+ or clang\+\+"):
        built()


def test_several_processes_at_once_get_the_same(place):
    code = "from native import build; print(build.library())"
    command = [sys.executable, "-c", code]
    jobs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    found = {job.communicate()[0] for job in jobs}
    assert len(found) == 1 and all(job.returncode == 0 for job in jobs)
    assert len(os.listdir(place / "cache/reste-trainer")) == 1
