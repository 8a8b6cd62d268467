"""The library's functions, and the structures that they take: those of native/program.h."""

import ctypes
from ctypes import c_char_p, c_int, c_int32, c_int64, c_void_p
from pathlib import Path


class Step(ctypes.Structure):
    """One step; what it needs not, is 0."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "blocks", "steps", "positions", "relu")),
        *((name, c_int32) for name in ("channels", "height", "width", "pitch")),
        *((name, c_int32) for name in ("out_height", "out_width", "out_pitch")),
        *((name, c_int32) for name in ("size", "stride", "padding")),
        *((name, c_int32) for name in ("input_is_wide", "next_is_wide", "joined")),
        *((name, c_int64) for name in ("input", "input_plane", "output", "output_plane")),
        *((name, c_int64) for name in ("residual", "next", "next_plane")),
        *((name, c_void_p) for name in ("weights", "offsets", "base", "edges")),
        *((name, c_void_p) for name in ("start", "mean", "slope", "bias", "leak", "shift")),
        ("threshold", c_void_p),
    ]


class Program(ctypes.Structure):
    """The steps, and where the last value lies."""

    _fields_ = [
        ("steps", ctypes.POINTER(Step)),
        *((name, c_int32) for name in ("count", "out_channels")),
        *((name, c_int32) for name in ("out_height", "out_width", "out_pitch")),
        *((name, c_int64) for name in ("output", "output_plane", "out_length")),
        ("differences", c_void_p),
    ]


class Images(ctypes.Structure):
    """What is read and written: images, arenas and results."""

    _fields_ = [
        ("pixels", c_void_p),
        ("strides", c_int64 * 4),
        ("count", c_int64),
        ("arenas", ctypes.POINTER(c_void_p)),
        ("results", c_void_p),
    ]


class Library:
    """The functions of the library at ``path``; raises OSError where it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        functions.reste_instructions.argtypes = [c_int]
        functions.reste_instructions.restype = c_char_p
        functions.reste_run.argtypes = [
            ctypes.POINTER(Program),
            c_char_p,
            c_int,
            ctypes.POINTER(Images),
        ]
        self._functions = functions
        assert functions.reste_step_size() == ctypes.sizeof(Step)

    def instructions(self) -> list[str]:
        """The instruction sets that this processor has, from the fastest to ``portable``."""
        names: list[str] = []
        while name := self._functions.reste_instructions(len(names)):
            names.append(name.decode())
        return names

    def run(self, program: Program, instructions: str, threads: int, images: Images) -> None:
        """Run a program; raises RuntimeError where the system gives no more threads."""
        name = instructions.encode()
        failure = self._functions.reste_run(program, name, threads, images)
        assert failure != 1, f"this processor has no {instructions}"
        if failure:
            raise RuntimeError(f"this machine does not start {threads} threads")
