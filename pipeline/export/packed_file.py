"""The packed file: one safetensors file with bits, numbers and, in its metadata, all the rest.

docs/inference.md has the format byte by byte. A file may come from anybody, so everything in it is
checked before it is believed: sizes, names, kinds and values, that the steps fit the tensors, and a
digest over all of it. Nothing here imports torch.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pipeline.export.description import KEY, described, parse_json
from pipeline.export.packed import Packed, plain
from pipeline.export.program import Array, Step, Tensors, from_plain, shapes, to_plain
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

VERSION = 1
MOST_BYTES = 2**31
MOST_HEADER = 2**23

_REAL_DTYPES = (np.float32, np.float16, np.int8)
# The dtypes of a tensor by the last part of its name, and its number of dimensions.
_KINDS: dict[str, tuple[tuple[type, ...], tuple[int, ...]]] = {
    "bits": ((np.uint8,), (4,)),
    "scale": ((np.float32,), (0,)),
    "norm": ((np.float32,), (2,)),
    "prelu": ((np.float32,), (2,)),
    "shift": ((np.float32,), (2,)),
    "weight": (_REAL_DTYPES, (2, 4)),
    "unit": ((np.float32,), (1,)),
    "bias": ((np.float32, np.float16), (1,)),
}


class _NotPacked(ValueError):
    """The file is a safetensors file of something else."""


def encode(packed: Packed) -> bytes:
    """The file that holds ``packed``; the same bytes for the same network."""
    about = {"version": VERSION, **plain(packed.about), "steps": to_plain(packed.steps)}
    about["sha256"] = digest(about, packed.tensors)
    text = json.dumps(about, separators=(",", ":"), allow_nan=False)
    tensors = {name: np.asarray(each, order="C") for name, each in packed.tensors.items()}
    return safetensors.numpy.save(tensors, {KEY: text})


def digest(about: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 over the metadata, but for the digest, as JSON with sorted keys and no spaces, and
    each tensor in the order of names: a line "name dtype shape", and its bytes."""
    known = {key: value for key, value in about.items() if key != "sha256"}
    text = json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False)
    hashing = hashlib.sha256(text.encode())
    for name, each in sorted(tensors.items()):
        hashing.update(f"\n{name} {each.dtype} {','.join(map(str, each.shape))}\n".encode())
        hashing.update(each.tobytes())
    return hashing.hexdigest()


def read(path: Path) -> Packed:
    """The network in a packed file.

    Raises UserError, in one line that names the file, where it cannot be read, is none, is damaged,
    or holds what no network of ours could.
    """
    try:
        with open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a packed file, as export CHECKPOINT writes it"
        ) from None
    return decode(content, path)


def decode(content: bytes, path: Path) -> Packed:
    """The network in the ``content`` of the packed file ``path``; errors as of ``read``."""
    try:
        about = _about(content)
        tensors = safetensors.numpy.load(content)
        return _checked(about, tensors)
    except _NotPacked:
        raise UserError(
            f"{path} is a safetensors file, but no packed network; give one that export wrote"
        ) from None
    except (ValueError, SafetensorError, KeyError, RecursionError) as error:
        why = error if type(error) is ValueError else "it cannot be read to its end"
        raise UserError(
            f"{path} is damaged, or no packed network: {why}; export it again"
        ) from None


def is_packed(path: Path) -> bool:
    """Whether a file begins like a packed network; False for what cannot be read."""
    try:
        with open_file(path) as file:
            head = file.read(9 + len(f'"__metadata__":{{"{KEY}":'))
    except OSError:
        return False
    return head[8:] == f'{{"__metadata__":{{"{KEY}":'.encode()


def _about(content: bytes) -> dict[str, Any]:
    """The metadata of a file, without its tensors."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES} bytes")
    (size,) = struct.unpack("<Q", content[:8].ljust(8, b"\xff"))
    if size > min(len(content) - 8, MOST_HEADER):
        raise ValueError("its header has an impossible size")
    header = parse_json(content[8 : 8 + size])
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise _NotPacked
    return parse_json(metadata[KEY])


def _checked(about: dict[str, Any], tensors: dict[str, Array]) -> Packed:
    if about.get("version") != VERSION:
        raise ValueError(f"its format is not {VERSION}, the one that this code reads")
    if about.pop("sha256", None) != digest(about, tensors):
        raise ValueError("its digest is wrong")
    del about["version"]
    steps = from_plain(about.pop("steps", None))
    packed = Packed(described(about), steps, tensors)
    for name, each in tensors.items():
        _check_tensor(name, each)
    _check_layers(packed.steps, tensors)
    _check_end(packed)
    return packed


def _check_tensor(name: str, tensor: Array) -> None:
    dtypes, dimensions = _KINDS.get(name.rpartition(".")[2], ((), ()))
    if tensor.dtype.type not in dtypes or tensor.ndim not in dimensions or not tensor.size:
        raise ValueError(f"{name[:80]!r} is {tensor.dtype} {tensor.shape}, which is no layer's")
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} is not finite")
    if name.endswith(".scale") and not tensor > 0:
        raise ValueError(f"{name} is not positive")
    if name.endswith(".norm") and (tensor.shape[0] != 4 or (tensor[3] < 0).any()):
        raise ValueError(f"{name} holds no variances")


def _check_layers(steps: tuple[Step, ...], tensors: Tensors) -> None:
    """Raise ValueError unless the steps use every tensor, and each of them fits its layer."""
    wanted: set[str] = set()
    for step in steps:
        wanted |= _tensors_of(step, tensors)
        if step.is_binary and step["channels"] % 8:
            last = tensors[f"{step.layer}.bits"][..., -1]
            if (last >> (step["channels"] % 8)).any():
                raise ValueError(f"{step.layer}.bits has bits behind the last channel")
    if wanted != tensors.keys():
        odd = min(wanted ^ tensors.keys())
        raise ValueError(f"its steps do not fit its tensors, as of {odd[:80]!r}")


def _tensors_of(step: Step, tensors: Tensors) -> set[str]:
    """The names of the tensors that a step needs."""
    if not step.layer:
        return set()
    kinds = ["weight"] if step.op in ("conv", "linear") else [step.op]
    if step.has_bias:
        kinds.append("bias")
    if step.is_binary:
        kinds = ["bits", "scale"]
    elif f"{step.layer}.weight" in tensors and tensors[f"{step.layer}.weight"].dtype == np.int8:
        kinds = [*kinds, "unit"]
    return {f"{step.layer}.{kind}" for kind in kinds}


def _check_end(packed: Packed) -> None:
    """Raise ValueError unless the steps can be run and end with logits, one for each class."""
    size = packed.about.images.size
    found = shapes(packed.steps, packed.tensors, size, size)
    for step in packed.steps:
        unit, count = packed.tensors.get(f"{step.layer}.unit"), 0
        if unit is not None:
            count = len(packed.tensors[f"{step.layer}.weight"])
        if unit is not None and len(unit) != count:
            raise ValueError(f"{step.layer}.unit is not one number a row")
    classes = packed.about.classes
    if packed.steps[-1].op != "linear" or found[-1] != (len(classes or range(*found[-1])),):
        raise ValueError("its steps do not end with a number for each class")
