"""Comparing runs: from what a person names to tables, a picture and a page, once or repeatedly."""

import os.path
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.report.comparison import Comparison
from pipeline.report.figures import Costs, Count, figures, is_finished
from pipeline.report.gathering import gather
from pipeline.report.groups import grouped
from pipeline.report.overlay import overlay
from pipeline.report.page import page
from pipeline.report.runs import METRICS, Run
from pipeline.report.texts import in_csv, in_markdown, in_words
from pipeline.report.wandb_runs import runs_of_project, wandb_ids
from pipeline.run.console import logger
from pipeline.run.errors import UserError, first_line
from pipeline.run.files import replacing

CLEAR = "\033[H\033[2J"  # a terminal
MOST_REASONS = 3  # why there is nothing to compare


class Request(NamedTuple):
    """What to compare: run folders, the metric, where the files go, and a wandb project."""

    paths: Sequence[Path]
    metric: str
    out: Path
    project: str | None = None


def compare(request: Request, count: Count, say: Callable[[str], None], watch: int = 0) -> None:
    """Write the files of ``request`` and ``say`` its tables; with ``watch`` look every so many
    seconds whether anything has changed, and do it again, until all runs are finished.

    ``count`` counts a network. Raises UserError where there is no run to compare, none has the
    metric, or the folder cannot be written.
    """
    _make_folder(request.out)
    costs, before = Costs(count), None
    while True:
        comparison = compared(request, costs)
        if comparison != before:
            _show(comparison, request.out, say, CLEAR if watch and sys.stdout.isatty() else "")
        if not watch or all(is_finished(run) for run in comparison.runs):
            return
        before = comparison
        time.sleep(watch)


def _show(comparison: Comparison, out: Path, say: Callable[[str], None], clear: str) -> None:
    written, missing = write(comparison, out)
    if clear:
        say(clear)
    for line in (*comparison.left_out, *missing):
        logger.warning(line)
    say("\n".join([in_words(comparison), "", *map(str, written)]))


def compared(request: Request, costs: Costs) -> Comparison:
    """The comparison as the runs are now."""
    runs, left_out = gather(list(_without(request.out, request.paths)))
    if request.project:
        further, notes = runs_of_project(request.project, wandb_ids(request.paths))
        runs, left_out = runs + further, left_out + notes
    if not runs:
        reasons = "; ".join(left_out[:MOST_REASONS])
        raise UserError(f"no run to compare; {reasons or 'give folders such as runs/quickstart'}")
    left_out += _lacking(runs, request.metric)
    known = {run.name: figures(run, request.metric, costs.of(run)) for run in runs}
    return Comparison(request.metric, grouped(runs), known, left_out)


def _without(out: Path, paths: Sequence[Path]) -> Iterator[Path]:
    """``paths`` without the folder ``out`` of an earlier comparison, which runs/* names too."""
    for path in paths:
        is_out = os.path.realpath(path) == os.path.realpath(out)
        if not is_out or os.path.exists(path / METRICS):
            yield path


def _lacking(runs: Sequence[Run], metric: str) -> list[str]:
    """A line for each run that has epochs, but not ``metric``; UserError if that is all of them."""
    begun = [run for run in runs if run.epochs]
    lacking = [run.name for run in begun if not any(value == value for value in run.series(metric))]
    if begun and len(lacking) == len(begun):
        names = dict.fromkeys(name for run in begun for name in run.epochs[-1])
        known = [n for n in names if any(v == v for run in begun for v in run.series(n))]
        raise UserError(f"--metric: no run has {metric}; choose one of {', '.join(known)}")
    return [f"{name} has no {metric}: it has no curve there" for name in lacking]


def write(comparison: Comparison, folder: Path) -> tuple[list[Path], list[str]]:
    """Write comparison.csv, .png, .html and .md to ``folder``; returns those that could be made,
    and a line for each that needs a package which is missing.

    Raises UserError where a file cannot be written.
    """
    makers: dict[str, Callable[[Comparison], bytes]] = {
        "csv": in_csv, "png": overlay, "html": page, "md": in_markdown,
    }  # fmt: skip
    written, missing = [], []
    for suffix, make in makers.items():
        path = folder / f"comparison.{suffix}"
        try:
            _put(path, make(comparison))
            written.append(path)
        except ImportError as error:
            missing.append(f"no {path}: {first_line(error)}; make setup installs it")
    return written, missing


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _put(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; name another folder with --out")
