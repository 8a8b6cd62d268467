"""Compiles the sources beside this file, once, with the compiler of this machine.

The library is kept in the user's cache folder under the hash of all that it was made of: sources,
options and compiler. Where that folder cannot be written to, a process keeps its own.
"""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
OPTIONS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-w"),
    "-ffp-contract=off",  # a product and a sum become one operation only where the sources say so
)
# The sources, and the options of their own.
SOURCES: dict[str, tuple[str, ...]] = {
    "engine": (),
    "instructions": (),
    "portable": (),
    "steps": (),
}
OF_A_MACHINE: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx2": ("-mavx2", "-mfma"), "avx512": ("-mavx512f", "-mavx512bw")},
    "aarch64": {"neon": ()},
}
NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}  # of machines, on other systems


class NoLibrary(RuntimeError):
    """The library cannot be built here; the message says why, in one line."""


@functools.cache
def library() -> Path:
    """The library, which is built now if these sources were not yet.

    Raises NoLibrary where there is no compiler, or it fails.
    """
    compiler = _compiler()
    name = f"{_digest(compiler)}.so"
    for folder in (_cache(), Path(_own_folder().name)):
        if folder is None:
            continue
        try:
            return _built(compiler, folder, folder / name)
        except OSError as error:
            reason = error.strerror
    raise NoLibrary(f"nothing can be written to {folder}: {reason}")


def _built(compiler: str, folder: Path, path: Path) -> Path:
    """``path``, a whole library. Two processes at once make the same one."""
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as part:
            os.replace(compiled(compiler, Path(part)), path)
    return path


def compiled(compiler: str, folder: Path, options: Sequence[str] = ()) -> Path:
    """A new library in ``folder``; raises NoLibrary with the compiler's first complaint."""
    path, jobs = folder / "library.so", []
    for name, own in {**SOURCES, **OF_A_MACHINE.get(_machine(), {})}.items():
        source, target = str(HERE / f"{name}.cpp"), str(folder / f"{name}.o")
        jobs.append(_started([compiler, *OPTIONS, *own, *options, "-c", source, "-o", target]))
    for said, job in [(job.communicate()[1], job) for job in jobs]:
        _check(compiler, job.returncode, said)
    objects = sorted(map(str, folder.glob("*.o")))
    link = _started([compiler, "-shared", "-pthread", *options, *objects, "-o", str(path)])
    said = link.communicate()[1]
    _check(compiler, link.returncode, said)
    return path


def _started(command: Sequence[str]) -> "subprocess.Popen[str]":
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=pipe, encoding="utf-8", errors="replace"
    )


def _check(compiler: str, code: int, said: str) -> None:
    if code:
        complaints = [line.strip() for line in said.splitlines() if "rror" in line]
        raise NoLibrary(f"{compiler} fails: {(complaints or ['it does not say why'])[0]}")


def _machine() -> str:
    return NAMES.get(platform.machine(), platform.machine())


def _compiler() -> str:
    """The path of $CXX, or of the first compiler that is installed."""
    for name in (*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++"):
        if sys.platform != "win32" and (path := shutil.which(name)):
            return path
    raise NoLibrary("there is no C++ compiler; install g++ or clang++")


def _digest(compiler: str) -> str:
    """A hash of all that makes the library what it is. A compiler is told by its file."""
    file = Path(compiler).resolve()
    facts = [str(file), str(file.stat().st_size), str(file.stat().st_mtime_ns), _machine()]
    facts += [repr((OPTIONS, SOURCES, OF_A_MACHINE))]
    hashing = hashlib.sha256("\n".join(facts).encode())
    for source in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]):
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
