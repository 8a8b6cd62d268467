"""The members of a tar archive where they lie, without unpacking it; an archive within an archive
is read in the same way.

Nothing that an archive says is believed: names are compared with a pattern, which has no room for
a path, only plain files are taken, and sizes must lie within the archive.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.data.exclude import printable
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

BLOCK = 512  # bytes; an archive consists of such, and a block of zeros ends it
LONGEST_HEADER = 2**16  # bytes, with a long name
# What tarfile raises where a header is damaged.
_DAMAGE = (tarfile.TarError, ArithmeticError, RuntimeError, ValueError)
REMEDY = "fetch it again from image-net.org"


class Member(NamedTuple):
    """A file in an archive: ``size`` bytes from ``start``, counted from the archive's first one."""

    name: str
    start: int
    size: int


class _Part:
    """A part of a file, as a file of its own of which ``tarfile`` reads the headers."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self.place = 0

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> int:
        self.place = place
        return place

    def read(self, count: int) -> bytes:
        if count > LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        self.file.seek(self.start + self.place)
        content = self.file.read(max(0, min(count, self.size - self.place)))
        self.place += len(content)
        return content


def members(path: Path, names: str, within: Member | None = None) -> Iterator[Member]:
    """The members of the archive ``path``, or of the one that is its member ``within``.

    ``names``: a regular expression for what they may be called. Raises UserError for anything else,
    and where the archive is cut short or damaged; OSError where it cannot be read.
    """
    place = f"{path}, {within.name}" if within else str(path)
    with open_file(path) as file:
        size = within.size if within else os.fstat(file.fileno()).st_size
        part = _Part(file, within.start if within else 0, size)
        try:
            yield from _members(part, names, place)
        except UserError:
            raise
        except _DAMAGE as error:
            raise UserError(f"{place} is cut short or damaged ({error}); {REMEDY}") from None


def _members(part: _Part, names: str, place: str) -> Iterator[Member]:
    seen = set()
    with tarfile.open(fileobj=part, mode="r:") as archive:  # type: ignore[call-overload]
        while (info := archive.next()) is not None:
            archive.members.clear()  # it would keep all of them
            if info.name in seen or not _is_plain(info) or not re.fullmatch(names, info.name):
                name = printable(info.name[:200])
                raise UserError(f"{place} holds {name}, which has no place in it; {REMEDY}")
            if not 0 <= info.size <= part.size - info.offset_data:
                raise tarfile.ReadError(f"the end of {info.name} is missing")
            seen.add(info.name)
            yield Member(info.name, part.start + info.offset_data, info.size)
        _check_end(part, archive.offset)


def _is_plain(info: tarfile.TarInfo) -> bool:
    return info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()


def _check_end(part: _Part, place: int) -> None:
    """``tarfile`` takes a header that is cut short or damaged for the end."""
    part.seek(place)
    if part.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"no header and no end at byte {place}")


def read(path: Path, member: Member) -> bytes:
    """The bytes of a member; raises UserError where they are not there any more."""
    with open(path, "rb") as file:
        file.seek(member.start)
        content = file.read(member.size)
    if len(content) < member.size:
        raise UserError(f"{path} has become shorter; {REMEDY}")
    return content
