"""The types of config values, and how each reads what a person wrote."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, Strict

from pipeline.run.plain_yaml import Written

LONGEST_TEXT = 4096  # characters, the longest path that Linux takes
INT64 = 2**63 - 1
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,999})")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,99}\.?[0-9]{0,99}|\.[0-9]{1,99})([eE][+-]?[0-9]{1,9})?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_integer(value: Any) -> Any:
    """The integer that was written in plain decimal digits; any other value as it is."""
    if isinstance(value, Written) and _INTEGER.fullmatch(value):
        return int(value)
    return value


def read_number(value: Any) -> Any:
    """The float that was written as a plain decimal number or given as an integer; any other value
    as it is."""
    if isinstance(value, Written) and _DECIMAL.fullmatch(value):
        return number if math.isfinite(number := float(value)) else value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= INT64:
        return float(value)
    return value


def read_boolean(value: Any) -> Any:
    """The boolean that was written as true or false, yes or no, on or off; any other value as it
    is."""
    return _WORDS.get(value.lower(), value) if isinstance(value, Written) else value


def read_toggle(value: Any) -> Any:
    """The words "true" and "false" for a boolean; any other value as it is."""
    value = read_boolean(value)
    return str(value).lower() if isinstance(value, bool) else value


def check_text(value: str | None) -> str | None:
    """The text itself; ValueError where it is empty, too long, asks for interpolation, has control
    characters or could not be in the name of a file."""
    if value is None:
        return None
    if not value or "${" in value:
        raise ValueError
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"at most {LONGEST_TEXT} characters long")
    if _CONTROL.search(value):
        raise ValueError("without control characters")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("without lone surrogates") from None
    return str(value)


def check_path(value: str | None) -> str | None:
    """The checked text with a leading ``~`` expanded."""
    text = check_text(value)
    return text and os.path.expanduser(text)


def read_epochs(text: str) -> tuple[int, ...]:
    """The epochs in a text such as "60,120"; ValueError where it is none, or they do not rise."""
    parts = text.replace(" ", "").split(",")
    epochs = tuple(int(part) for part in parts if re.fullmatch("[1-9][0-9]{0,8}", part))
    if len(epochs) < len(parts) or list(epochs) != sorted(set(epochs)):
        raise ValueError
    return epochs


def check_epochs(value: str | None) -> str | None:
    """The text itself; ValueError where ``read_epochs`` finds no epochs in it."""
    text = check_text(value)
    if text is not None:
        read_epochs(text)
    return text


def read_sides(text: str) -> tuple[int, ...]:
    """The sides of images, in pixels, in a text such as "128,160,192"; ValueError where one is none
    or not between 8 and 4096."""
    parts = text.replace(" ", "").split(",")
    sides = tuple(int(part) for part in parts if re.fullmatch("[1-9][0-9]{0,3}", part))
    if len(sides) < len(parts) or not all(8 <= side <= 4096 for side in sides):
        raise ValueError
    return sides


def check_sides(value: str | None) -> str | None:
    """The text itself; ValueError where ``read_sides`` finds no sides in it."""
    text = check_text(value)
    if text is not None:
        read_sides(text)
    return text


@dataclass(frozen=True)
class OneOf:
    """Checks that a name is in a registry, which is looked at when a config is made."""

    registry: Mapping[str, object]

    def __call__(self, name: str) -> str:
        if name not in self.registry:
            raise ValueError
        return name


Integer = Annotated[int, Strict(), BeforeValidator(read_integer), Field(ge=-INT64 - 1, le=INT64)]
Number = Annotated[float, Strict(), BeforeValidator(read_number), Field(allow_inf_nan=False)]
Boolean = Annotated[bool, Strict(), BeforeValidator(read_boolean)]
Toggle = Annotated[Literal["auto", "true", "false"], BeforeValidator(read_toggle)]
Text = Annotated[InstanceOf[str], AfterValidator(check_text)]
FilePath = Annotated[InstanceOf[str], AfterValidator(check_path)]
OptionalText = Annotated[InstanceOf[str] | None, AfterValidator(check_text)]
OptionalEpochs = Annotated[InstanceOf[str] | None, AfterValidator(check_epochs)]
OptionalSides = Annotated[InstanceOf[str] | None, AfterValidator(check_sides)]
OptionalPath = Annotated[InstanceOf[str] | None, AfterValidator(check_path)]


def limits(low: float, high: float) -> str:
    """The words for a range of values, both ends allowed."""
    return f"of at least {low:.10g}" if high == INT64 else f"between {low:.10g} and {high:.10g}"
