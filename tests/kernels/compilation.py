"""Compiles Triton kernels for the GPUs we support, where there need be none.

A test module lists its jobs in a function ``gpu_jobs``, which takes the types that maps have, and
looks at what the compiler made of them in a test that takes the fixture ``usages``. The jobs of all
modules are compiled together, once for all of pytest's processes, in one of their own, as in those
the kernels may be the interpreter's:

    def gpu_jobs(types):
        return [job(op._forward_kernel, x_ptr=t, y_ptr=t, n="i32", BLOCK=1024) for t in types]


    def test_compiles_for_the_gpus_we_support(usages):
        assert [usage for usage in usages if usage.spilled] == []
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from kernels import ESTIMATORS
from tests import ROOT
from tests.kernels.assembly import Code, read_code

ARCHS = (80, 90, 100)  # A100, H100, B200
TYPES = ("*fp32", "*bf16", "*fp16")


class Usage(NamedTuple):
    """What a thread of one kernel takes on one architecture."""

    kernel: str  # "module:name"
    arguments: dict
    arch: int
    registers: int
    spilled: int  # bytes of stack, which a Triton kernel needs for spilled registers only
    code: Code | None = None  # where the job asked for it


def job(
    kernel, num_warps=4, *, num_stages=3, archs=ARCHS, divisible=(), read_code=False, **arguments
):
    """One kernel to compile for ``archs``, as plain data.

    ``arguments`` holds the type of each pointer or number ("*fp32", "*u8", "i32"; a list of them
    for a tuple) and the value of each constexpr. A pointer that is not given is None. ``kernel``
    and constexpr functions may be Triton functions of a module or their names, "module:name". The
    numbers that ``divisible`` names are multiples of 16, of which a launch tells the compiler.
    ``read_code`` adds the code to the usage.
    """
    arguments = {key: _name(value) for key, value in arguments.items()}
    options = {"num_warps": num_warps, "num_stages": num_stages}
    job = {"kernel": _name(kernel), "options": options, "archs": archs, "arguments": arguments}
    return {**job, "divisible": divisible, "read_code": read_code}


def known_job(kernel, known):
    """``kernel`` with those of the ``known`` arguments that it has."""
    names = {*kernel.arg_names, "num_warps"}
    return job(kernel, **{name: value for name, value in known.items() if name in names})


def _name(value):
    return f"{value.fn.__module__}:{value.fn.__name__}" if hasattr(value, "fn") else value


def takes(usage, *estimators):
    """Whether this kernel computes the factor or the surrogate of one of ``estimators``."""
    functions = [ESTIMATORS[each] for each in estimators]
    names = {_name(f) for e in functions for f in (e.triton_factor, e.triton_surrogate) if f}
    return bool(names & {usage.arguments.get(name) for name in ("FACTOR", "SURROGATE")})


def compile_jobs(jobs):
    """The Usage of every job on each of its architectures; fails with the compiler's own words."""
    return read_usages(compile_apart(jobs))


def read_usages(text):
    """The usages that ``compile_apart`` wrote."""
    usages = [Usage(*values) for values in json.loads(text)]
    return [usage._replace(code=usage.code and Code(*usage.code)) for usage in usages]


def compile_apart(jobs):
    """The usages of the jobs as JSON, from a process in which Triton is not interpreted."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compilation"],
        input=json.dumps(jobs),
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _compile(arch, job):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel, arguments = job["kernel"], job["arguments"]
    function = _resolve(kernel)
    signature, constants, aligned = {}, {}, {}
    for place, parameter in enumerate(function.params):
        value = arguments.get(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(place,)] = "constexpr", _resolve(value)
            continue
        several = isinstance(value, list)
        signature[parameter.name] = tuple(value) if several else value
        places = [(place, i) for i in range(len(value))] if several else [(place,)]
        if value[0].startswith("*") or parameter.name in job["divisible"]:
            aligned |= dict.fromkeys(places, [["tt.divisibility", 16]])  # as torch allocates
    source = ASTSource(function, signature, constants, aligned)
    target = GPUTarget("cuda", arch, 32)
    cubin = compile(source, target=target, options=job["options"]).asm["cubin"]
    code = read_code(cubin) if job["read_code"] else None
    return Usage(kernel, arguments, arch, *_read_usage(cubin), code)


def _resolve(value):
    """The function that "module:name" stands for; anything else is itself."""
    if not (isinstance(value, str) and ":" in value):
        return value
    module, name = value.split(":")
    return getattr(importlib.import_module(module), name)


def _read_usage(cubin):
    """(registers, bytes of stack) as the binary itself states them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups()))


if __name__ == "__main__":
    work = [(arch, each) for each in json.load(sys.stdin) for arch in each["archs"]]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        print(json.dumps([*pool.map(_compile, *zip(*work, strict=True))]))
