"""A comparison as text: for a terminal, as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from pipeline.report.comparison import HEADS, Comparison, Rows
from pipeline.report.groups import differing


def in_words(comparison: Comparison) -> str:
    """The tables for a terminal."""
    parts = [aligned(comparison.results)]
    if comparison.settings:
        parts = ["settings that differ", aligned(comparison.settings), "", *parts]
    return "\n".join(parts)


def in_csv(comparison: Comparison) -> bytes:
    """CSV: a row for each run, with all digits, its group, and the settings that differ."""
    keys = differing(comparison.runs)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["run", "group", "metric", *HEADS, *keys])
    for group in comparison.groups:
        for run in group.runs:
            values = comparison.figures[run.name]
            numbers = ["" if values[name] != values[name] else values[name] for name in HEADS]
            settings = [run.config.get(key, "") for key in keys]
            writer.writerow([run.name, group.label, comparison.metric, *numbers, *settings])
    return file.getvalue().encode()


def in_markdown(comparison: Comparison) -> bytes:
    """The tables in Markdown, with the picture, which lies beside."""
    parts = [f"# Comparison of {len(comparison.runs)} runs", "![the curves](comparison.png)"]
    parts += ["## Results", _markdown(comparison.results)]
    if comparison.settings:
        parts += ["## Settings that differ", _markdown(comparison.settings)]
    if comparison.left_out:
        parts += ["## Left out", "\n".join(f"- {_plain(line)}" for line in comparison.left_out)]
    return ("\n\n".join(parts) + "\n").encode()


def _markdown(rows: Rows) -> str:
    head, *others = ([_plain(cell) for cell in row] for row in rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *others))


def _plain(text: str) -> str:
    """``text`` as Markdown that shows just it."""
    return re.sub(r"([\\`*_~&<>|\[\]])", r"\\\1", text)


def aligned(rows: Rows) -> str:
    """A table for a terminal: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (_aligned(row, widths) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _aligned(row: Sequence[str], widths: Iterable[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
