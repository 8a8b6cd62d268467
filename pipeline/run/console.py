"""What a run says to people: on the console and in log.txt."""

import contextlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from pipeline.run import processes
from pipeline.run.lines import LineFile

logger = logging.getLogger("reste")

FIRST_STEPS = 3  # after so many, their speed is told
GAPS = (10.0, 600.0)  # seconds between two lines of progress: at first, and at most


class _Console(logging.Handler):
    """Writes lines to stderr, above a progress bar if there is one; warnings are yellow on a
    terminal. A stderr that fails is no matter."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
            if sys.stderr.isatty():
                text = f"\033[33m{text}\033[0m"
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stderr)
        _pace.note()


class _LogFile(logging.Handler):
    """Appends lines to log.txt, with the time before each. A failure is kept in ``error``, for the
    loop to end the run where it can save."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = LineFile(path)
        self.error: OSError | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.file.add(self.format(record))
        except OSError as error:
            self.error = error


def start_console() -> None:
    """Let ``logger`` write to stderr, Python's warnings included, each as one line without its
    place in the code; processes other than the main one show errors only."""
    if not processes.is_main():
        warnings.simplefilter("ignore")
    logger.handlers.clear()
    logger.setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    logger.propagate = False
    logger.addHandler(_Console())
    warnings.showwarning = _warn
    _pace.begin()


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    logger.warning("%s", " ".join(str(message).split()))


def start_file(path: Path) -> None:
    """Let ``logger`` append to ``path`` too, with the time before every line."""
    logger.addHandler(_LogFile(path))


def check_file() -> None:
    """Raise OSError if log.txt could not be written, or does not lie at its path any more."""
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            if handler.error:
                raise handler.error
            handler.file.check()


class _Pace:
    """When progress is told off a terminal: after the first steps of each kind of work, and then
    whenever nothing was said for as long as the run had lasted before, within ``GAPS``."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.began = self.spoken = time.monotonic()
        self.known: set[str] = set()  # kinds of work whose first steps are done

    def note(self) -> None:
        """Something was said."""
        self.spoken = time.monotonic()

    def is_due(self, kind: str, steps: int, left: float) -> bool:
        """Whether it is time for a line, after ``steps`` of this ``kind`` and with ``left`` seconds
        to go."""
        if kind not in self.known and steps >= FIRST_STEPS:
            self.known.add(kind)
            return left > GAPS[0]
        shortest, longest = GAPS
        gap = min(max(self.spoken - self.began, shortest), longest)
        return time.monotonic() - self.spoken >= gap


_pace = _Pace()


class ProgressBar:
    """Shows how far a piece of work is, by a bar on a terminal and by a plain line now and then
    elsewhere.

    ``label``: its kind, and what else there is to say. ``images``: how many a step takes, or how
    much of another ``unit``. ``later``: how many more steps come after this piece, for the estimate
    of the time left. It is a context, whose end takes the bar away.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, images: int = 1, later: int = 0,
        unit: str = "images",
    ) -> None:  # fmt: skip
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.images, self.later = images, later
        self.first, self.mark = done, (done, time.monotonic())
        self.bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            colour="green",
            disable=not (processes.is_main() and _has_room_for_a_bar()),
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} {postfix} {remaining} left",
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, **values: float) -> None:
        """Count one step more; ``values`` are shown when it is time to."""
        self.done += 1
        if not self.bar.disable:
            if values:
                self.bar.set_postfix_str(_in_words(values), refresh=False)
            self.bar.update()
            return
        done, mark = self.mark
        now = time.monotonic()
        seconds = (now - mark) / (self.done - done)  # of a step
        if self.done == self.first + 1:
            self.mark = self.done, now  # the first step, which makes things ready, does not count
        left = seconds * (self.total - self.done + self.later)
        if _pace.is_due(self.label.split()[0], self.done - self.first, left):
            self.show(
                self.done, left, **{f"{self.unit}/s": self.images / max(seconds, 1e-9)}, **values
            )

    def show(self, done: int, left: float, **values: float) -> None:
        """Show ``values`` after ``done`` steps, with ``left`` seconds to go."""
        text = _in_words(values)
        if self.bar.disable:
            logger.info(
                "%s  step %d/%d  %s  %s left", self.label, done, self.total, text, clock(left)
            )
        else:
            self.bar.set_postfix_str(text)


def _has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal, and not one that says it is 0 columns wide, as those do which
    nobody has given a size: a bar would stay empty there."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):  # no terminal of the system; tqdm assumes a width
        return True


def _in_words(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bold(text: str) -> str:
    """``text``, bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stderr.isatty() else text
