"""Programs that run without Python: under a sanitizer, or an emulator of another processor."""

import ctypes
import os
import struct
import subprocess
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np

from native import build
from native.engine import WITH_TILES
from native.library import Images, Step
from native.plan import Plan

HERE = Path(__file__).parent
# Options of sanitizers; each ends the program at what it finds.
ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread",)
TABLES = ("weights", "offsets", "base", "edges", "start")
POINTERS = (*TABLES, "mean", "slope", "bias", "leak", "shift", "threshold")


def compiled(compiler, folder, machine, options=()):
    """The program of alone.cpp with the library's sources for a machine."""
    path, objects = folder / "alone", []
    sources = dict((*build.ENGINE.sources, *dict(build.ENGINE.of_a_machine)[machine]))
    options = (*build.OPTIONS, *build.ENGINE.options, *options)
    for name, own in sources.items():
        source, target = build.HERE / f"{name}.cpp", folder / f"{name}.o"
        run([*compiler, *own, *options, "-c", source, "-o", target])
        objects.append(target)
    run([*compiler, *options, HERE / "alone.cpp", *objects, "-o", path])
    return path


def run(command, **variables):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # what it takes, it keeps
    environment |= {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def results(command, layers, images, instructions, threads=1):
    """What the last layer gives for the images, by the program that ``command`` starts."""
    plan = Plan(layers, *images.shape[1:], has_tiles=instructions in WITH_TILES)
    with tempfile.TemporaryDirectory() as folder:
        program, out = Path(folder) / "program", Path(folder) / "results"
        program.write_bytes(_written(plan, np.ascontiguousarray(images)))
        run([*command, program, instructions, str(threads), out])
        return np.fromfile(out, np.float32).reshape(len(images), *plan.result.shape)


def _written(plan, images):
    arrays = [each for each in plan.kept if isinstance(each, np.ndarray)]
    numbers = {each.ctypes.data: n for n, each in enumerate(arrays, start=1)}
    steps = (Step * len(plan.steps))(*plan.steps)
    program = type(plan.program).from_buffer_copy(plan.program)
    for step in steps:
        for name in POINTERS:
            address = getattr(step, name)
            setattr(step, name, numbers[address] if address else 0)
    program.differences = numbers[program.differences]
    strides = (ctypes.c_int64 * 4)(*[each // 4 for each in images.strides])
    call = Images(strides=strides, count=len(images))
    parts = [*arrays, program, steps, call, images]
    found = struct.pack("<q", len(arrays)) + b"".join(map(_counted, parts))
    numbers = [plan.arena, len(plan.gaps), *plan.gaps, len(plan.zeros), *chain(*plan.zeros)]
    return found + struct.pack(f"<{len(numbers)}q", *numbers)


def _counted(part):
    content = bytes(part) if not isinstance(part, np.ndarray) else part.tobytes()
    return struct.pack("<q", len(content)) + content
