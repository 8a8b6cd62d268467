"""The packed file: one safetensors file with bits, numbers and, in its metadata, all the rest.

docs/inference.md has the format byte by byte. A file may come from anybody, so everything in it is
checked before it is believed: sizes, names, kinds and values, that the steps fit the tensors, and a
digest over all of it. Nothing here imports torch.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pipeline.export.packed import About, Images, Packed, plain
from pipeline.export.program import MOST_SIDE, Array, Step, Tensors, from_plain, shapes, to_plain
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

KEY = "reste"  # under which the metadata hold everything, as JSON
VERSION = 1
MOST_BYTES = 2**31
MOST_HEADER = 2**23
MOST_TEXT = 2**16
REAL = ("float32", "classifier16", "float16", "int8")  # how real weights may be stored

_REAL_DTYPES = (np.float32, np.float16, np.int8)
# The dtypes of a tensor by the last part of its name, and its number of dimensions.
_KINDS: dict[str, tuple[tuple[type, ...], tuple[int, ...]]] = {
    "bits": ((np.uint8,), (4,)),
    "scale": ((np.float32,), (0,)),
    "norm": ((np.float32,), (2,)),
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
    header = _json(content[8 : 8 + size])
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise _NotPacked
    return _json(metadata[KEY])


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object without keys that come twice, of which parsers take the first or the last."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("its header is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name in its header comes twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"its header holds {constant}")


def _checked(about: dict[str, Any], tensors: dict[str, Array]) -> Packed:
    if about.get("version") != VERSION:
        raise ValueError(f"its format is not {VERSION}, the one that this code reads")
    if about.pop("sha256", None) != digest(about, tensors):
        raise ValueError("its digest is wrong")
    del about["version"]
    steps = from_plain(about.pop("steps", None))
    packed = Packed(_described(about), steps, tensors)
    for name, each in tensors.items():
        _check_tensor(name, each)
    _check_layers(packed.steps, tensors)
    _check_end(packed)
    return packed


def _described(values: dict[str, Any]) -> About:
    """The metadata in the types of ``About``; raises ValueError where they are others."""
    about = plain(_EXAMPLE)
    if values.keys() != about.keys():
        raise ValueError("its metadata are not those of a packed network")
    texts = ("arch", "bits", "estimator", "dataset", "real", "commit")
    if not all(isinstance(values[key], str) and len(values[key]) < MOST_TEXT for key in texts):
        raise ValueError("a text in its metadata is none")
    return About(
        **{key: values[key] for key in texts},
        classes=_classes(values["classes"]),
        images=_images(values["images"]),
        accuracy=_numbers(values["accuracy"]),
    )


def _classes(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes are no names")
    return tuple(names)


def _images(values: Any) -> Images:
    if not isinstance(values, dict) or values.keys() != vars(_EXAMPLE.images).keys():
        raise ValueError("it does not say how images are prepared")
    size, resize, divisor = values["size"], values["resize"], values["divisor"]
    if not all(type(side) is int and 0 < side <= MOST_SIDE for side in (size, resize)):
        raise ValueError("the size of its images is impossible")
    colours = {name: _colours(values[name]) for name in ("mean", "std")}
    if not _is_number(divisor) or divisor <= 0 or min(colours["std"]) <= 0:
        raise ValueError("it divides images by what is not positive")
    return Images(size, max(size, resize), float(divisor), **colours)


def _colours(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError("it has not one number for each colour")
    red, green, blue = map(float, values)
    return red, green, blue


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, dict) or not all(map(_is_number, values.values())):
        raise ValueError("its accuracy is no number")
    return values


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
        if step.op == "conv" and step.options.get("channels", 0) % 8:
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
    kinds = {"conv": ["weight"], "norm": ["norm"], "linear": ["weight", "bias"]}[step.op]
    if "channels" in step.options:
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


_EXAMPLE = About("", "", "", "", None, Images(1, 1, 1.0, (0.0,) * 3, (1.0,) * 3))
