"""Compiles the sources beside this file, once, with the compiler of this machine.

The library is kept in the user's cache folder under the hash of all that it was made of: sources,
options and compiler. Where that folder cannot be written to, or is full, a process keeps its own.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-w")
AVX512 = ("-mavx512f", "-mavx512bw")
NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}  # of machines, on other systems
Sources = tuple[tuple[str, tuple[str, ...]], ...]  # names, and options of their own


@dataclass(frozen=True)
class Recipe:
    """What a library is made of: the sources in ``folder``, those that only a kind of machine has,
    options for all of them, and ``texts`` by name, which are sources but no files."""

    folder: Path
    sources: Sources
    of_a_machine: tuple[tuple[str, Sources], ...] = ()
    options: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()

    def write(self, folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
        """The sources for this machine, of which the texts are written into ``folder``."""
        for name, text in self.texts:
            (folder / f"{name}.cpp").write_text(text, encoding="utf-8")
        own = (*self.sources, *dict(self.of_a_machine).get(_machine(), ()))
        files = [(self.folder / f"{name}.cpp", options) for name, options in own]
        return files + [(folder / f"{name}.cpp", ()) for name, _ in self.texts]


ENGINE = Recipe(
    folder=HERE,
    sources=(("engine", ()), ("instructions", ()), ("portable", ()), ("steps", ())),
    of_a_machine=(
        ("x86_64", (("avx2", ("-mavx2", "-mfma")), ("avx512", AVX512), ("amx", AVX512))),
        ("aarch64", (("neon", ()),)),
    ),
    # A product and a sum become one operation only where the sources say so.
    options=("-ffp-contract=off",),
)


class NoLibrary(RuntimeError):
    """The library cannot be built here; the message says why, in one line."""


@functools.cache
def library(recipe: Recipe = ENGINE) -> Path:
    """The library, which is built now if these sources were not yet.

    Raises NoLibrary where there is no compiler, or it fails.
    """
    compiler, cache = _compiler(), _cache()
    name = _digest(compiler, recipe)
    if cache and (kept := _kept(cache, name)):
        return kept
    logging.getLogger("reste").info("C++ is compiled for this processor, once: 5 to 15 seconds")
    try:
        made = compiled(compiler, Path(tempfile.mkdtemp(dir=_own_folder().name)), recipe)
    except OSError as error:
        raise NoLibrary(f"no temporary file can be written: {error.strerror}") from None
    return _copied(made, cache, name) if cache else made


def _kept(cache: Path, name: str) -> Path | None:
    """The library ``name``, which holds what was written. What a disk or a power cut has damaged
    would end the process that loads it."""
    for path in cache.glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            if path.name == _file_name(name, path.read_bytes()):
                return path
    return None


def _file_name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _copied(made: Path, cache: Path, name: str) -> Path:
    """A copy of ``made`` in ``cache``; ``made`` itself where there is no room for one. Two
    processes at once make the same copy."""
    try:
        kept = cache / _file_name(name, made.read_bytes())
        with tempfile.TemporaryDirectory(dir=cache) as part:
            os.replace(shutil.copy(made, part), kept)
    except OSError:
        return made
    return kept


def compiled(
    compiler: Sequence[str], folder: Path, recipe: Recipe = ENGINE, options: Sequence[str] = ()
) -> Path:
    """A new library in ``folder``; raises NoLibrary with the compiler's first complaint."""
    path, jobs = folder / "library.so", []
    given = [*OPTIONS, *recipe.options, *options, f"-I{recipe.folder}"]
    for source, own in recipe.write(folder):
        target = str(folder / f"{source.stem}.o")
        jobs.append(_started([*compiler, *given, *own, "-c", str(source), "-o", target]))
    for said, job in [(job.communicate()[1], job) for job in jobs]:
        _check(compiler, job.returncode, said)
    objects = sorted(map(str, folder.glob("*.o")))
    link = _started([*compiler, "-shared", *given, *objects, "-o", str(path)])
    said = link.communicate()[1]
    _check(compiler, link.returncode, said)
    return path


def _started(command: Sequence[str]) -> "subprocess.Popen[str]":
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=pipe, encoding="utf-8", errors="replace"
    )


def _check(compiler: Sequence[str], code: int, said: str) -> None:
    if code:
        complaints = [line.strip() for line in said.splitlines() if "rror" in line]
        raise NoLibrary(f"{' '.join(compiler)} fails: {(complaints or ['it does not say why'])[0]}")


def _machine() -> str:
    return NAMES.get(platform.machine(), platform.machine())


def _compiler() -> list[str]:
    """The words of $CXX, such as ``ccache g++``, or the first compiler that is installed; the first
    word is a path."""
    for words in (shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]):
        if sys.platform != "win32" and words and (path := shutil.which(words[0])):
            return [path, *words[1:]]
    raise NoLibrary("there is no C++ compiler; install g++ or clang++")


def _digest(compiler: Sequence[str], recipe: Recipe) -> str:
    """A hash of all that makes the library what it is. A compiler is told by its file, and so is
    what runs it."""
    facts = [*compiler, _machine()]
    for program in filter(None, map(shutil.which, compiler)):
        file = Path(program).resolve()
        facts += [str(file), str(file.stat().st_size), str(file.stat().st_mtime_ns)]
    facts += [repr((OPTIONS, recipe.sources, recipe.of_a_machine, recipe.options, recipe.texts))]
    if "-march=native" in (*compiler, *recipe.options):
        # What this processor has, as the compiler sees it.
        command = [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
        facts.append(subprocess.run(command, capture_output=True, encoding="utf-8").stdout)
    hashing = hashlib.sha256("\n".join(facts).encode())
    shared = HERE.glob("*.h")  # which sources of every folder may include
    for source in sorted({*recipe.folder.glob("*.cpp"), *recipe.folder.glob("*.h"), *shared}):
        hashing.update(source.name.encode() + source.read_bytes())
    return hashing.hexdigest()[:32]


def _cache() -> Path | None:
    """The user's folder for libraries, made if need be. None where others could write into it, as
    what lies there is run, or where it cannot be made."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "reste-trainer"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError:
        return None
    return folder if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 else None


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """This process's own folder, which is removed at its end."""
    return tempfile.TemporaryDirectory(prefix="reste-trainer-")
