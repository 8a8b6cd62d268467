"""Builds the stand-in, once, and says how a process runs under it."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / ".standin"  # the library, and what Triton compiles for it
SOURCES = ("cuda.cpp", "nccl.cpp", "standin.h", "include/crt/host_defines.h")
LIBRARY = "libcuda.so.1"  # the name under which the runtime and Triton look for the driver


def obstacle() -> str | None:
    """Why there can be no stand-in here, or None."""
    if sys.platform != "linux":
        return f"the stand-in needs Linux, and this is {platform.system()}"
    if shutil.which("g++") is None:
        return "the stand-in needs g++"
    if importlib.util.find_spec("triton") is None:
        return "the stand-in needs Triton"
    if torch.version.cuda is None:
        return "the stand-in needs a torch that was built for CUDA"
    if headers() is None:
        return "the stand-in needs the headers of CUDA, which torch's wheels for CUDA bring"
    return None


def headers() -> Path | None:
    """The folder of CUDA's headers: those of the wheels, else those of an installed toolkit."""
    wheels = importlib.util.find_spec("nvidia")
    folders = wheels.submodule_search_locations if wheels else None
    found = [path for folder in folders or () for path in sorted(Path(folder).glob("*/include"))]
    for path in (*found, Path("/usr/local/cuda/include")):
        if (path / "cuda.h").exists() and (path / "cuda_runtime_api.h").exists():
            return path
    return None


def library() -> Path:
    """The library, which is built if these sources and headers have not been built yet.

    Raises RuntimeError with the compiler's words where they do not fit together.
    """
    include = headers()
    assert include, obstacle()
    inputs = [*(HERE / name for name in SOURCES), include / "cuda.h"]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    built = CACHE / version / LIBRARY
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    own = [] if (include / "crt/host_defines.h").exists() else [f"-I{HERE / 'include'}"]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        part = Path(folder) / LIBRARY
        options = ["-O2", "-w", "-shared", "-fPIC", "-std=c++17", f"-Wl,-soname,{LIBRARY}"]
        files = [HERE / name for name in SOURCES if name.endswith(".cpp")]
        command = ["g++", *options, f"-I{include}", *own, *files, "-o", part]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the stand-in cannot be built:\n{done.stderr}")
        part.replace(built)  # another process may have been faster: it is the same
    return built


def environment(ranks: int = 1) -> dict[str, str]:
    """The environment of a process that sees ``ranks`` devices of the stand-in."""
    built = library()
    unwanted = {"TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES"}
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    paths = [str(built.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return inherited | {
        "LD_PRELOAD": str(built),
        "LD_LIBRARY_PATH": ":".join(paths),
        "TRITON_LIBCUDA_PATH": str(built.parent),
        "TRITON_CACHE_DIR": str(CACHE / "triton"),
        "STANDIN_DEVICES": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
