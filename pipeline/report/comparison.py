"""What a comparison of runs says: groups, figures, and tables of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.figures import Figures, is_finished, mean_and_deviation, planned
from pipeline.report.groups import MISSING, Group, differing
from pipeline.report.runs import Run
from pipeline.report.summary import short

Rows = list[list[str]]  # of a table, its head first
HEADS = ("best", "at", "last", "epochs", "images/s", "hours", "size", "OPs")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: in groups, with their figures of ``metric`` by their names, and a line for
    each that is left out, and why."""

    metric: str
    groups: Sequence[Group]
    figures: Mapping[str, Figures]
    left_out: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def metrics(self) -> list[str]:
        """What the curves show: the metric that was asked for, and the loss in evaluation, if any
        run has it."""
        has_loss = any("val_loss" in epoch for run in self.runs for epoch in run.epochs[:1])
        return list(dict.fromkeys([self.metric, *["val_loss"] * has_loss]))

    @property
    def settings(self) -> Rows:
        """The settings that differ, if any do: a column for each group, or a row where there are
        more groups than settings."""
        if not (keys := differing(self.runs)):
            return []
        rows = [["", *(group.label for group in self.groups)]]
        rows += [[key, *(_values(group, key) for group in self.groups)] for key in keys]
        return [list(row) for row in zip(*rows, strict=True)] if len(rows) < len(rows[0]) else rows

    @property
    def results(self) -> Rows:
        """The figures of each run; behind the runs of a group the mean and deviation of those that
        are finished."""
        rows = [[self.metric, *HEADS]]
        for group in self.groups:
            rows += [[run.name, *self._cells(run)] for run in group.runs]
            finished = [self.figures[run.name] for run in group.runs if is_finished(run)]
            if len(finished) > 1:
                rows.append(self._mean(f"{group.label}: mean of {len(finished)}", finished))
        return rows

    def _cells(self, run: Run) -> list[str]:
        figures, goal = self.figures[run.name], planned(run)
        cells = [show(name, figures[name], self.metric) for name in HEADS]
        if not is_finished(run) and not math.isnan(goal):
            cells[HEADS.index("epochs")] += f" of {goal}"
        return cells

    def _mean(self, label: str, several: Sequence[Figures]) -> list[str]:
        cells = [label]
        for name in HEADS:
            mean, deviation = mean_and_deviation([figures[name] for figures in several])
            text = "" if name in ("at", "epochs") else show(name, mean, self.metric)
            if name in ("best", "last") and not math.isnan(deviation):
                text += f" ± {show(name, deviation, self.metric)}"
            cells.append(text)
        return cells


def show(name: str, value: float, metric: str) -> str:
    """The figure ``name`` for people."""
    if math.isnan(value):
        return MISSING
    if name in ("best", "last"):
        return f"{value:.2f}" if "top" in metric else f"{value:.4g}"
    if name in ("size", "OPs"):
        return short(value) + "B" * (name == "size")
    return f"{value:.3g}" if name == "hours" else f"{value:.0f}"


def _values(group: Group, key: str) -> str:
    """The values of a setting in a group, which may be several seeds."""
    return ", ".join(dict.fromkeys(run.config.get(key, MISSING) for run in group.runs))
