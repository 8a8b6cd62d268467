"""The list of images that ``data.exclude`` leaves out of a data set.

A list holds one path a line, relative to data.path, such as train/<class>/1.jpg. Empty lines and
lines that begin with "#" are skipped. Windows' ways are read too: backslashes between the parts, a
byte order mark, UTF-16. A name that is not printable UTF-8, or that holds a backslash itself,
stands there as a JSON string. Listed paths are only compared with the names in the data set, never
opened.
"""

import json
import posixpath
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import cast

from pipeline.run.commands import command_line
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

LONGEST_LINE = 64 * 1024  # characters; a path is shorter, even with each of them escaped
SPLITS = ("train", "val", "test")


def printable(text: str) -> str:
    """``text`` as one printable line, which is a JSON string where need be."""
    return text if text.isprintable() and "\\" not in text else json.dumps(text)


def read(file: str | None, split: str, root: Path | str) -> set[str]:
    """The paths of ``split`` in a list for the data set at ``root``; none where ``file`` is None.

    Raises UserError where the list cannot be read or a line of it is in none of ``SPLITS``.
    """
    if file is None:
        return set()
    try:
        # Line by line: a wrong file, however large, is refused at its first line.
        with _open_text(file) as text:
            lines = iter(lambda: text.readline(LONGEST_LINE + 1), "")
            names = {
                _name(line, f"data.exclude={file}, line {n}", root)
                for n, line in enumerate(lines, 1)
            }
    except OSError as error:
        raise UserError(f"data.exclude={file}: {error.strerror}; {remedy(root)}") from None
    except UnicodeError:
        raise UserError(f"data.exclude={file}: broken UTF-16; {remedy(root)}") from None
    return {name for name in names if name.startswith(f"{split}/")}


def _open_text(file: str) -> TextIOWrapper:
    binary = cast(BufferedReader, open_file(file))
    if binary.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        return TextIOWrapper(binary, "utf-16")
    return TextIOWrapper(binary, "utf-8-sig", "surrogateescape")


def remedy(root: Path | str) -> str:
    """What helps where a list cannot be used with the data set at ``root``."""
    report, number = Path("bad-images.txt"), 1
    while report.exists():  # it may be the very list that cannot be used
        report, number = Path(f"bad-images-{number + 1}.txt"), number + 1
    named = () if number == 1 else ("--report", str(report))
    verify = command_line("prepare", "verify", str(root), *named)
    return f"set data.exclude=null, or data.exclude={report} after: {verify}"


def _name(line: str, place: str, root: Path | str) -> str:
    """The path in a line, "" where it holds none."""
    if len(line) > LONGEST_LINE:
        raise UserError(f"{place}: longer than {LONGEST_LINE} characters, no path; {remedy(root)}")
    text = line.strip()
    if not text or text.startswith("#"):
        return ""
    name = posixpath.normpath(_unquoted(text))
    if name.partition("/")[0] not in SPLITS:
        raise UserError(
            f"{place}: {printable(text[:200])} is no path train/<class>/..., val/... or test/... "
            f"below data.path; correct or remove that line, or {remedy(root)}"
        )
    return name


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"') else text.replace("\\", "/")
    except ValueError:
        return text
