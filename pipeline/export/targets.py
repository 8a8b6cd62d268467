"""The kinds of files that a network is exported to."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.export.measure import measured
from pipeline.export.optional import load
from pipeline.export.output import Files, Options
from pipeline.export.packed import Packed
from pipeline.export.packed_file import encode, is_packed
from pipeline.export.shrink import MEASURED, shrink
from pipeline.export.source import Source, packed_path
from pipeline.run.errors import UserError
from pipeline.run.files import write_together

Maker = Callable[[Packed, Options], Files]
ELSEWHERE = "name another place for it"


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
    _maker(kind)  # what is missing is told before anything is measured
    if not (out or target.suffix):
        raise UserError(f"--to {kind} takes a folder behind it, such as --to {kind} {path.stem}")
    place = out or path.with_suffix(target.suffix)
    if os.path.realpath(place) == os.path.realpath(path):
        raise UserError(f"{place} is the network itself; name another place behind --to {kind}")
    if not target.suffix:
        _check_folder(place)
    packed = shrink(source.packed, options.real)
    if options.real in MEASURED and packed is not source.packed:
        packed = measured(source, packed, path)
    return save(kind, packed, place, replace(options, recipe=source.recipe, curve=_curve(path)))


def save(kind: str, packed: Packed, place: Path, options: Options) -> Path:
    """Write ``packed`` as a ``kind`` of file to ``place``; returns the file, or the folder.

    Raises UserError where a package is missing, or the network cannot be written so, or not there.
    """
    files, suffix = _maker(kind)(packed, options), TARGETS[kind].suffix
    if not suffix:
        write_together(place, files, ELSEWHERE)
        return place
    named = {place.with_suffix(each).name: content for each, content in files.items()}
    write_together(place.parent, named, ELSEWHERE)
    return place.with_suffix(suffix)


def _maker(kind: str) -> Maker:
    target = TARGETS[kind]
    if not isinstance(target.maker, str):
        return target.maker
    maker: Maker = load(target.maker, f"--to {kind}", target.packages)
    return maker


def _check_folder(place: Path) -> None:
    """Raise UserError where there is a folder with files that no export has written."""
    if place.is_dir() and any(place.iterdir()) and not is_packed(packed_path(place)):
        raise UserError(f"{place} holds other files; name a new or an empty folder behind --to hub")


def _curve(path: Path) -> Path | None:
    """The picture of the run that a checkpoint lies in."""
    picture = path.resolve().parent.parent / "plots" / "training.png"
    return picture if picture.is_file() else None
