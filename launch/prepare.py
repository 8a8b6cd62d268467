"""Look at the files of a data set before training."""

import os
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, choose, command, whole

VERIFY = Parser(
    "prepare verify",
    "DATA [--report FILE] [--workers N]",
    """List the images of a data tree that cannot be read.

    Decodes every image of train/, val/ and test/, whichever exist, and lists those that cannot be
    read in a report, which data.exclude takes as it is. DATA is only read. Started again, it looks
    only at images that are new, changed or bad. Exits with 1 if there are bad images.
    """,
    ("/path/to/imagenet", "/path/to/imagenet --report bad.txt --workers 16"),
)
VERIFY.add_argument("data", metavar="DATA", type=Path, help="the folder that data.path is to name")
VERIFY.add_argument(
    "--report", metavar="FILE", type=Path, default=Path("bad-images.txt"),
    help="the list to write, with what is remembered in FILE.state beside it (%(default)s)",
)  # fmt: skip
VERIFY.add_argument(
    "--workers", metavar="N", type=whole(1, 1024), default=os.cpu_count() or 1,
    help="threads (one per core)",
)  # fmt: skip


def verify(arguments: Sequence[str]) -> None:
    """Verify the tree that ``arguments`` name; exit with 1 if images are bad."""
    options = VERIFY.parse(arguments)
    from pipeline.prepare.verify import verify_tree
    from pipeline.run.console import start_console

    start_console()
    if verify_tree(options.data, options.report, options.workers):
        raise SystemExit(1)


def main(arguments: Sequence[str]) -> None:
    """Do what ``arguments`` name."""
    choose("prepare", __doc__ or "", {"verify": (VERIFY.summary, verify)}, arguments)


if __name__ == "__main__":
    command(main)
