"""The report of a study: a table of its groups, for people and for programs, and its pictures.

A group is the trials that differ in their seed alone. Only finished trials count in its figures.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.report.runs import Record
from pipeline.run.config import Config
from pipeline.run.files import write_atomically
from pipeline.run.study import Study, Trial


class Figure(NamedTuple):
    """The mean of a figure over the trials of a group, and its standard deviation; None of one
    trial."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """That of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def best(epochs: list[Record]) -> float:
    """The best top-1 on the validation images, in per cent."""
    return max(epoch["val_top1"] for epoch in epochs)


def last(epochs: list[Record]) -> float:
    """The top-1 on the validation images after the last epoch, in per cent."""
    return float(epochs[-1]["val_top1"])


def _indicator(section: str, name: str) -> Any:
    """The function that gives the mean of an indicator over the epochs, or None without one."""

    def mean(epochs: list[Record]) -> float | None:
        values = [epoch.get("indicators", {}).get(section, {}).get(name) for epoch in epochs]
        return None if None in values else statistics.fmean(values)

    return mean


# What is known of a trial: by its column in the table, a function of the records of its epochs.
# docs/indicators.md says what the indicators are.
COLUMNS: dict[str, Any] = {
    "best": best,
    "last": last,
    "error": _indicator("total", "error"),
    "stability": _indicator("total", "stability"),
    "official_error": _indicator("official", "estimating_error"),
    "official_stability": _indicator("official", "gradient_stability"),
}
HEADS = {
    "best": "best val top-1 (%)",
    "last": "last val top-1 (%)",
    "error": "estimating error",
    "stability": "gradient stability",
    "official_error": "official error",
    "official_stability": "official stability",
}


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone: their ``label``, how many are ``finished`` of how
    many in ``total``, the config of the first, and a ``Figure`` for each column that is known."""

    label: str
    config: Config
    finished: int
    total: int
    figures: Mapping[str, Figure]


def groups(study: Study) -> list[Group]:
    """The groups of ``study``, in the order of its trials."""
    labels = dict.fromkeys(trial.label for trial in study.trials)
    return [_group([t for t in study.trials if t.label == label]) for label in labels]


def _group(trials: list[Trial]) -> Group:
    finished = [trial.records() for trial in trials if trial.is_finished]
    figures = {}
    for name, function in COLUMNS.items():
        values = [value for epochs in finished if (value := function(epochs)) is not None]
        if values and len(values) == len(finished):
            figures[name] = Figure.of(values)
    return Group(trials[0].label, trials[0].config, len(finished), len(trials), figures)


def write_report(study: Study) -> str:
    """Write the tables of ``study`` into its folder; returns what there is to say, in lines."""
    found = groups(study)
    contents = {"table.md": markdown(found).encode(), "table.csv": comma_separated(found).encode()}
    for name, content in contents.items():
        write_atomically(study.folder / name, content)
    return "\n".join([plain(found), "", f"{study.folder}: {', '.join(contents)}"])


def cells(found: Sequence[Group]) -> list[list[str]]:
    """The table in words: its head, then a row for each group; a column that no group has is left
    out."""
    columns = [name for name in COLUMNS if any(name in group.figures for group in found)]
    rows = [["trials", "finished", *(HEADS[name] for name in columns)]]
    for group in found:
        done = f"{group.finished} of {group.total}"
        rows.append([group.label, done, *(_words(group.figures.get(name)) for name in columns)])
    return rows


def _words(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure.deviation is None else f" ± {_digits(figure.deviation)}"
    return f"{_digits(figure.mean)}{spread}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 or not value else f"{value:.3g}"


def plain(found: Sequence[Group]) -> str:
    """The table in columns for a terminal."""
    rows = cells(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def markdown(found: Sequence[Group]) -> str:
    """The table in Markdown."""
    head, *rows = cells(found)
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{NOTE}\n"


NOTE = (
    "Mean ± standard deviation over the finished trials of a row, which differ in their seed. "
    "Error and stability are means over the epochs, of all binary weights together."
)


def comma_separated(found: Sequence[Group]) -> str:
    """The table as CSV, with all digits and a column for each figure and each deviation."""
    file = io.StringIO()
    names = [f"{name}_{part}" for name in COLUMNS for part in Figure._fields]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trials", "estimator", "finished", "total", *names])
    for group in found:
        figures = [group.figures.get(name, ("", "")) for name in COLUMNS]
        about = [group.label, group.config.estimator.name, group.finished, group.total]
        writer.writerow([*about, *(part for figure in figures for part in figure)])
    return file.getvalue()


def listing(study: Study) -> str:
    """The trials of ``study``, a line each: its name, and how far it is."""
    width = max(len(trial.name) for trial in study.trials)
    lines = [
        f"{trial.name:{width}}  {trial.epochs_done} of {trial.config.train.epochs} epochs"
        for trial in study.trials
    ]
    return "\n".join([*lines, f"{len(study.open)} of {len(lines)} trials are to be done"])
