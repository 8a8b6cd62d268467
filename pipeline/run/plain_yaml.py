"""Configuration files: plain YAML 1.1, so that no file, whatever it holds, runs, hangs or grows.

Plain means: one document of mappings, lists and scalars of at most ``MOST_BYTES`` bytes of UTF-8,
``MOST_DEPTH`` levels and, after its aliases are filled in, ``MOST_NODES`` nodes. Every key is text
and stands once. There are no tags and no merges (``<<``).

YAML 1.1 guesses the type of a scalar that stands without quotes: it reads ``010`` as 8, ``no`` as
false and ``1:30`` as 90, but ``1e-3`` as text. Here its rule is kept for a null alone (``null``,
``~`` or nothing). Any other scalar without quotes becomes ``Written`` text, of which the type of
its key decides the value. A scalar in quotes is text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.run.errors import UserError
from pipeline.run.files import open_file

MOST_BYTES = 64 * 1024
MOST_DEPTH = 20
MOST_NODES = 2000
NULLS = ("", "~", "null", "Null", "NULL")


class Written(str):
    """Text as a person wrote it without quotes; the type of its key decides what it means."""

    __slots__ = ()


def load(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration file; an empty file has none.

    Raises:
        UserError: the file cannot be read, is too large or is no plain YAML; the message names the
            file and, where there is one, the line.
    """
    try:
        with open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}; take one of configs/*.yaml") from None
    try:
        if len(content) > MOST_BYTES:
            raise _NotPlain(f"it is larger than {MOST_BYTES} bytes; take one of configs/*.yaml")
        values = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"config {path} is no text in UTF-8; take one of configs/*.yaml") from None
    except _NotPlain as error:
        raise UserError(f"config {path}: {error}") from None
    if not isinstance(values, dict | None):
        what = "a list" if isinstance(values, list) else "text"
        raise UserError(f"config {path} must hold keys and values, not {what}; write key: value")
    return values or {}


def parse(text: str) -> Any:
    """The value of a YAML document: dicts, lists, ``Written`` or plain text, or None.

    Raises ValueError, with the line, what is wrong and the remedy, where ``text`` is not plain.
    """
    try:
        return _Document(text).read()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _NotPlain(f"{line}not valid YAML ({_clean(error.problem)}); correct it") from None
    except yaml.YAMLError as error:
        raise _NotPlain(f"not valid YAML ({_clean(str(error))}); correct it") from None
    except _NotPlain:
        raise
    except (OverflowError, ValueError):  # an escape such as "\\UFFFFFFFF", a version of many digits
        what = "not valid YAML (an escape or a version is out of range)"
        raise _NotPlain(f"{what}; correct it") from None


class _NotPlain(ValueError):
    """What is wrong with a document and the remedy, in one line."""


def _clean(text: str | None) -> str:
    return ascii(" ".join((text or "").split())[:150])[1:-1]


@dataclass(frozen=True)
class _Node:
    """A value, and how many nodes and levels it has when its aliases are filled in."""

    value: Any
    size: int
    depth: int


class _Document:
    """Builds values from the parser's events, which come one by one: what is too deep or too large
    is refused before it is read to its end."""

    def __init__(self, text: str) -> None:
        self._events = _events(text)
        self._anchors: dict[str, _Node] = {}
        self._size = 0
        self._line = 1

    def read(self) -> Any:
        value = None
        next(self._events)  # the start of the stream
        if isinstance(self._next(), yaml.DocumentStartEvent):
            value = self._node(self._next(), 1).value
            self._next()
            if isinstance(self._next(), yaml.DocumentStartEvent):
                raise self._error("a second document begins", "keep one in a file")
        return value

    def _next(self) -> yaml.Event:
        event = next(self._events)
        self._line = event.start_mark.line + 1
        return event

    def _error(self, what: str, remedy: str) -> _NotPlain:
        return _NotPlain(f"line {self._line}: {what}; {remedy}")

    def _node(self, event: yaml.Event, level: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(event)
            self._size += node.size
        else:
            node = self._new(event, level)
            if event.anchor:
                self._anchors[event.anchor] = node
        if level + node.depth - 1 > MOST_DEPTH:
            raise self._error(f"nested deeper than {MOST_DEPTH} levels", "write it flat")
        if self._size > MOST_NODES:
            raise self._error(f"more than {MOST_NODES} values, aliases included", "leave some out")
        return node

    def _alias(self, event: yaml.AliasEvent) -> _Node:
        try:
            return self._anchors[event.anchor]
        except KeyError:
            what = f"the alias *{_clean(event.anchor)} names nothing that ends before it"
            raise self._error(what, "write the value out") from None

    def _new(self, event: yaml.Event, level: int) -> _Node:
        if event.tag is not None:
            tag = _clean(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise self._error(f"the tag {tag} is not taken", "remove it")
        if level > MOST_DEPTH:
            raise self._error(f"nested deeper than {MOST_DEPTH} levels", "write it flat")
        before = self._size
        self._size += 1
        if isinstance(event, yaml.ScalarEvent):
            return _Node(_scalar(event), 1, 1)
        read = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._list
        value, depth = read(level + 1)
        return _Node(value, self._size - before, 1 + depth)

    def _mapping(self, level: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        depth = 0
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(self._node(event, level).value)
            if key in values:
                raise self._error(f"the key {_clean(key)} stands twice", "keep one of them")
            node = self._node(self._next(), level)
            values[key], depth = node.value, max(depth, node.depth)
        return values, depth

    def _key(self, key: Any) -> str:
        if key is None:
            raise self._error("a key is empty or null", "write key: value")
        if not isinstance(key, str):
            raise self._error("a key is no text", "write key: value")
        if key == "<<":
            raise self._error("<< would merge another mapping", "write its keys out")
        return str(key)

    def _list(self, level: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        depth = 0
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            node = self._node(event, level)
            values.append(node.value)
            depth = max(depth, node.depth)
        return values, depth


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=yaml.SafeLoader)


def _scalar(event: yaml.ScalarEvent) -> str | None:
    if not event.implicit[0]:
        return str(event.value)
    return None if event.value in NULLS else Written(event.value)
