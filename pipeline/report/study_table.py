"""The table of a study: a row for each group, for terminals, in Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence

from pipeline.report.study_groups import COLUMNS, Figure, Group
from pipeline.report.tables import aligned, markdown
from pipeline.run.study import Study


def cells(found: Sequence[Group]) -> list[list[str]]:
    """The table in words: its head, then a row for each group; a column that no group has is left
    out."""
    columns = [name for name in COLUMNS if any(name in group.figures for group in found)]
    rows = [["trials", "finished", *(COLUMNS[name].head for name in columns)]]
    for group in found:
        figures = [_words(name, group.figures.get(name)) for name in columns]
        rows.append([group.label, f"{group.finished} of {group.total}", *figures])
    return rows


def _words(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    values = [value for value in figure if value is not None]
    return " ± ".join(format(value, COLUMNS[name].digits) for value in values)


def plain(found: Sequence[Group]) -> str:
    """The table in columns for a terminal."""
    return aligned(cells(found))


def in_markdown(found: Sequence[Group]) -> str:
    """The table in Markdown."""
    return f"{markdown(cells(found))}\n\n{NOTE}\n"


NOTE = (
    "Mean ± standard deviation over the finished trials of a row, which differ in their seed. "
    "Error and stability are means over the epochs, of all binary weights together."
)


def comma_separated(found: Sequence[Group]) -> str:
    """The table as CSV, with all digits: a column for each key that is varied, and for each figure
    and each deviation."""
    keys = list(dict.fromkeys(key for group in found for key in group.varied))
    figures = [f"{name}_{part}" for name in COLUMNS for part in Figure._fields]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["estimator.name", *keys, "finished", "total", *figures])
    for group in found:
        values = [part for name in COLUMNS for part in group.figures.get(name, ("", ""))]
        settings = [group.varied.get(key, "") for key in keys]
        writer.writerow([group.estimator, *settings, group.finished, group.total, *values])
    return file.getvalue()


def listing(study: Study) -> str:
    """The trials of ``study``, a line each: its name, and how far it is."""
    width = max(len(trial.name) for trial in study.trials)
    lines = [
        f"{trial.name:{width}}  {trial.epochs_done} of {trial.config.train.epochs} epochs"
        for trial in study.trials
    ]
    return "\n".join([*lines, f"{len(study.open)} of {len(lines)} trials are to be done"])
