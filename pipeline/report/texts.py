"""A comparison as text: for a terminal, as Markdown and as CSV."""

import csv
import io
import re

from pipeline.report.comparison import HEADS, Comparison, Rows
from pipeline.report.groups import differing
from pipeline.report.tables import aligned, markdown


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
    return markdown([[_plain(cell) for cell in row] for row in rows])


def _plain(text: str) -> str:
    """``text`` as Markdown that shows just it."""
    return re.sub(r"([\\`*_~&<>|\[\]])", r"\\\1", text)
