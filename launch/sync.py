"""Send runs to wandb from their own files, whether or not wandb recorded them.

Each is sent in full, under one identity: sent again, it takes the place of what was sent before,
and one that has grown since brings what is new. docs/wandb.md says what that cannot do. What is
wrong with a run is told in a line, the others are sent, and the exit code is 2.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, command

PARSER = Parser(
    "sync",
    "RUN... [--offline] [--best]",
    __doc__ or "",
    (
        "runs/quickstart",
        "runs/*",
        "runs/quickstart --best",
        "runs/quickstart --offline",
    ),
)
PARSER.add_argument(
    "runs", metavar="RUN", nargs="+", help="the folder of a run, such as runs/quickstart"
)
PARSER.add_argument(
    "--offline", action="store_true",
    help="only write a folder that wandb sync takes, where there is a network",
)  # fmt: skip
PARSER.add_argument("--best", action="store_true", help="send the best checkpoint too")


def main(arguments: Sequence[str]) -> None:
    """Send the runs that ``arguments`` name."""
    options = PARSER.parse(arguments)
    from pipeline.report.sync import send_all
    from pipeline.run.console import start_console

    start_console()
    mode = "offline" if options.offline else "online"
    if send_all([Path(run) for run in options.runs], mode, best=options.best):
        sys.exit(2)


if __name__ == "__main__":
    command(main)
