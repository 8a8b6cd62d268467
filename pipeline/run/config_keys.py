"""What is known about every config key, and what a user is told about a wrong key or value."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from kernels.estimators import Option
from pipeline.run.config_types import (
    INT64,
    OneOf,
    check_epochs,
    check_path,
    check_sides,
    limits,
    read_integer,
)
from pipeline.run.plain_yaml import Written

REFERENCE = "docs/config.md lists all keys"


@dataclass(frozen=True)
class Key:
    """A key such as ``optim.lr``: its default, what its value must be, its meaning, the words of
    its choices if it has them, and other names under which people look for it."""

    name: str
    default: Any
    must: str
    meaning: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @classmethod
    def of_field(cls, name: str, field: FieldInfo) -> "Key":
        """The key of a field of a pydantic model."""
        extra: Any = field.json_schema_extra or {}
        choices, also = _choices(field), tuple(extra.get("also", ()))
        must = _must(field, choices)
        return cls(name, field.default, must, field.description or "", choices, also)

    @classmethod
    def of_option(cls, estimator: str, name: str, option: Option) -> "Key":
        """The key of an option of an estimator."""
        must = f"a number {limits(option.low, option.high)}"
        return cls(f"estimator.{name}", option.default, must, f"{estimator}: {option.meaning}")


def _choices(field: FieldInfo) -> tuple[str, ...]:
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)
    checks = [each.func for each in field.metadata if isinstance(each, AfterValidator)]
    return next((tuple(each.registry) for each in checks if isinstance(each, OneOf)), ())


def _must(field: FieldInfo, choices: Collection[str]) -> str:
    if choices:
        return f"one of {', '.join(choices)}"
    if field.annotation is bool:
        return "true or false"
    kind, rules = _kind(field)
    if kind in (int, float):
        low = max(each.ge for each in rules if hasattr(each, "ge"))
        high = min(each.le for each in rules if hasattr(each, "le"))
        what = f"{'an integer' if kind is int else 'a number'} {limits(low, high)}"
        return what if field.default is not None else f"{what}, or null"
    checks = [each.func for each in field.metadata if isinstance(each, AfterValidator)]
    kinds = {
        check_path: "a path",
        check_epochs: "rising epochs such as 60,120",
        check_sides: "sides of 8 to 4096 pixels such as 128,160,192",
    }
    what = next((words for check, words in kinds.items() if check in checks), "text of one line")
    return what if field.is_required() or field.default is not None else f"{what}, or null"


def _kind(field: FieldInfo) -> tuple[Any, Sequence[Any]]:
    """The type of a field and the rules for its values; of one that may be null, those beside."""
    for inner in get_args(field.annotation):
        if hasattr(inner, "__metadata__"):
            rules = [getattr(each, "metadata", [each]) for each in inner.__metadata__]
            return get_args(inner)[0], list(chain.from_iterable(rules))
    return field.annotation, field.metadata


def refusal(key: Key, value: Any, reason: str = "") -> str:
    """The line about a value that ``key`` does not take, with a ``reason`` that it may have."""
    if isinstance(value, str) and "${" in value:
        # It would read the environment, and with it secrets, into config.yaml.
        return f"{key.name} is {shown(value)}; write it out, ${{...}} is not filled in"
    if key.choices and isinstance(value, str):
        close = difflib.get_close_matches(value[:64].lower(), key.choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key.name} is {shown(value)}; choose {key.must}{hint}"
    value = read_integer(value) if key.must.startswith("an integer") else value
    hint = f", {reason}" if reason else _way_to_write(key, value)
    return f"{key.name} is {shown(value)}; it must be {key.must}{hint}"


def _way_to_write(key: Key, value: Any) -> str:
    if isinstance(value, int) and abs(value) > INT64:
        return ", within 64 bits"
    ways = {"an integer": ", in plain digits", "a number": ", as a plain decimal", "true": ""}
    for kind, way in ways.items():
        if isinstance(value, str) and key.must.startswith(kind):
            return way if isinstance(value, Written) else ", without quotes"
    return ""


def shown(value: Any) -> str:
    """A value of whatever type and size, in a few printable words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(str(value[:80])) + ("..." if len(value) > 80 else "")
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge integer"
    if isinstance(value, int | float):
        return repr(value)
    kinds = {Mapping: "a mapping", list | tuple: "a list"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), "no plain value")


def unknown(word: str, keys: Iterable[Key], *, what: str = "no config key") -> str:
    """The line about a key that there is not."""
    keys = list(keys)
    if word in {key.name for key in keys}:  # it stands where only sections stand
        section, _, name = word.partition(".")
        return f"{word} is {what} at this place; write {section}: {{{name}: value}}"
    close = nearest(word, keys)
    return f"{_plain(word)} is {what}; {f'did you mean {close}?' if close else REFERENCE}"


def _plain(word: str) -> str:
    text = word[:64] + ("..." if len(word) > 64 else "")
    return text if text.isprintable() and text else repr(text)


def nearest(word: str, keys: Iterable[Key]) -> str | None:
    """The key that ``word`` most likely means, by its spelling, by other names of a key, and by the
    words of its meaning; None where none is likely."""
    word = word.lower()[:64].lstrip("-").replace("-", "_")
    score, name = max((_likeness(word, key), key.name) for key in keys)
    return name if score >= 0.66 else None


def _likeness(word: str, key: Key) -> float:
    """From 0 to 1 for the likeness of the name or of the meaning, and up to 0.1 for the section."""
    section, _, name = word.rpartition(".")
    own_section, _, own = key.name.rpartition(".")
    initials = "".join(part[0] for part in own.split("_"))
    names = (own, f"{own_section}_{own}", *key.also)
    is_short_for = len(name) > 1 and name == initials  # which counts less than a name it goes by
    spelling = max(0.99 * is_short_for, *(_ratio(name, each) for each in names))
    words, known = _words(name), _words(f"{own} {key.meaning}")
    meaning = sum(each in known for each in words) / max(1, len(words))
    return max(spelling, 0.75 * meaning) + 0.1 * _ratio(section, own_section)


def _ratio(a: str, b: str) -> float:
    if min(len(a), len(b)) < 3:  # too short to be alike by more than chance
        return float(a == b)
    return difflib.SequenceMatcher(None, a, b).ratio()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{3,}", text.lower())


def reference(keys: Iterable[Key]) -> str:
    """docs/config.md: every key with its default, what its value must be, and its meaning."""
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = "null" if key.default is None else str(key.default)
        if isinstance(key.default, bool):
            default = default.lower()
        cells = (f"`{key.name}`", f"`{default}`", key.must, key.meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return INTRODUCTION + "\n".join(rows) + "\n"


INTRODUCTION = """# Configuration

This page is printed by `python -m pipeline.run.config`; a test holds it equal to the code.

A config is a YAML file that holds what differs from the defaults below, in sections, as
`optim: {lr: 0.1}`. Overrides behind it on the command line are written `optim.lr=0.1`. Each value
is taken by the type of its key. Text and paths stand as they are written, so that `run.name=010`
and `run.name=no` are names; paths may begin with `~`. Numbers are plain decimal ones, such as `5`,
`0.1` or `1e-3`, and integers have digits only. `null` unsets a key that may be unset. In a file, a
value in quotes is text.

A file is plain YAML of at most 64 KiB and 20 levels, without tags, merges (`<<`) and keys that
stand twice. Aliases are filled in. `${...}` is never filled in.

"""
