"""What a run says to people: on the console and in log.txt."""

import logging
import sys
import warnings
from pathlib import Path

from tqdm import tqdm

from pipeline.run import processes

logger = logging.getLogger("reste")


class _Console(logging.Handler):
    """Writes lines to stderr, above a progress bar if there is one; warnings are yellow on a
    terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
            if sys.stderr.isatty():
                text = f"\033[33m{text}\033[0m"
        tqdm.write(text, file=sys.stderr)


def start_console() -> None:
    """Let ``logger`` write to stderr; processes other than the main one show errors only."""
    if not processes.is_main():
        warnings.simplefilter("ignore")
    logger.handlers.clear()
    logger.setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    logger.propagate = False
    logger.addHandler(_Console())


def start_file(path: Path) -> None:
    """Let ``logger`` append to ``path`` too, with the time before every line."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


class ProgressBar:
    """Shows how far an epoch is, by a bar on a terminal and by a plain line now and then elsewhere.

    It is a context, whose end takes the bar away.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total = label, total
        self.bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            colour="green",
            disable=not sys.stderr.isatty() or not processes.is_main(),
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} {postfix} {remaining} left",
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """Count one batch more."""
        self.bar.update()

    def show(self, done: int, left: float, **values: float) -> None:
        """Show ``values`` after ``done`` batches, with ``left`` seconds to go."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar.disable:
            logger.info(
                "%s  step %d/%d  %s  %s left", self.label, done, self.total, text, clock(left)
            )
        else:
            self.bar.set_postfix_str(text)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bold(text: str) -> str:
    """``text``, bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stderr.isatty() else text
