"""The kinds of files that a network is exported to."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.export.measure import measured
from pipeline.export.optional import load
from pipeline.export.output import Files, Options, write
from pipeline.export.packed import Packed
from pipeline.export.packed_file import encode
from pipeline.export.shrink import MEASURED, shrink
from pipeline.export.source import Source
from pipeline.run.errors import UserError

Maker = Callable[[Packed, Options], Files]


def packed_files(packed: Packed, options: Options) -> Files:
    """The packed file."""
    return {".safetensors": encode(packed)}


@dataclass(frozen=True)
class Target:
    """A kind of export: what makes its files, or where to find that, "module:name", and the
    packages that this takes beside those of every training. ``suffix`` is that of the file that is
    asked for; a folder has none."""

    suffix: str
    maker: Maker | str
    packages: tuple[str, ...] = ()


TARGETS = {
    "packed": Target(".safetensors", packed_files),
    "onnx": Target(".onnx", "pipeline.export.onnx_file:files", ("onnx",)),
    "openvino": Target(".xml", "pipeline.export.openvino_file:files", ("openvino",)),
    "hub": Target("", "pipeline.export.hub:files"),
}


def export(source: Source, path: Path, kind: str, out: Path | None, options: Options) -> Path:
    """Write the network of ``source``, which lies in ``path``, as a ``kind`` of file to ``out``, or
    beside ``path``; returns where.

    Raises UserError where a package is missing, the network cannot be written so, or not there.
    """
    target = TARGETS[kind]
    make = target.maker
    if isinstance(make, str):
        make = load(make, f"--to {kind}", target.packages)
    if not (out or target.suffix):
        raise UserError(f"--to {kind} takes a folder behind it, such as --to {kind} {path.stem}")
    place = out or path.with_suffix(target.suffix)
    if os.path.realpath(place) == os.path.realpath(path):
        raise UserError(f"{place} is the network itself; name another place behind --to {kind}")
    packed = shrink(source.packed, options.real)
    if options.real in MEASURED and packed is not source.packed:
        packed = measured(source, packed, path)
    options = replace(options, recipe=source.recipe, curve=_curve(path))
    for name, content in make(packed, options).items():
        write(place.with_suffix(name) if target.suffix else place / name, content)
    return place.with_suffix(target.suffix) if target.suffix else place


def _curve(path: Path) -> Path | None:
    """The picture of the run that a checkpoint lies in."""
    picture = path.resolve().parent.parent / "plots" / "training.png"
    return picture if picture.is_file() else None
