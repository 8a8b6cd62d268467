"""What a network is, as it stands in files that may come from anybody: JSON, strictly read.

Nothing here imports torch.
"""

import json
import math
from typing import Any

from pipeline.export.packed import About, Images, plain
from pipeline.export.program import MOST_SIDE

KEY = "reste"  # under which files of other formats hold it
MOST_TEXT = 2**16  # characters


def to_text(about: About) -> str:
    """``about`` as JSON."""
    return json.dumps(plain(about), separators=(",", ":"), allow_nan=False)


def from_text(text: str) -> About:
    """What ``to_text`` wrote; raises ValueError, with a reason, for anything else."""
    return described(parse_json(text))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object without keys that come twice, of which parsers take the first or the last.

    Raises ValueError, with a reason, for anything else.
    """
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


def described(values: dict[str, Any]) -> About:
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
        images=_prepared(values["images"]),
        accuracy=_numbers(values["accuracy"]),
    )


def _classes(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes are no names")
    return tuple(names)


def _prepared(values: Any) -> Images:
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


_EXAMPLE = About("", "", "", "", None, Images(1, 1, 1.0, (0.0,) * 3, (1.0,) * 3))
