"""Compare runs: what differs in their settings, their results, their curves.

A table in the terminal, and in a folder comparison.md, .csv, .png and .html, a page with curves
that one can hover, zoom and switch off. Runs that differ in their seed alone get a mean and its
deviation. Runs may still be training, or come from other versions.

"at" is the epoch of the best value, images/s that of the median epoch; the size has binary weights
packed into bits, and OPs are per image (docs/counting.md).
"""

from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command, whole

PARSER = Parser(
    "compare",
    "RUN... [--metric NAME] [--out FOLDER] [--watch[=SECONDS]] [--wandb ENTITY/PROJECT]",
    __doc__ or "",
    (
        "runs/a runs/b",
        "runs/* --metric val_loss --out comparison",
        "runs/a runs/b --watch",
        "--wandb my-team/reste",
    ),
)
PARSER.add_argument(
    "runs", metavar="RUN", nargs="*", type=Path, help="a run's folder, such as runs/quickstart"
)
PARSER.add_argument(
    "--metric", metavar="NAME", default="val_top1",
    help="a number of the epochs' records in metrics.jsonl (%(default)s)",
)  # fmt: skip
PARSER.add_argument(
    "--out", metavar="FOLDER", type=Path, default=Path("runs/compare"),
    help="where the files go (%(default)s)",
)  # fmt: skip
PARSER.add_argument(
    "--watch", nargs="?", const=30, default=0, type=whole(1), metavar="SECONDS",
    help="draw anew what has changed after so many seconds (30), until all runs are finished",
)  # fmt: skip
PARSER.add_argument(
    "--wandb", metavar="ENTITY/PROJECT", help="compare the runs of this wandb project, too"
)


def main(arguments: Sequence[str]) -> None:
    """Compare the runs that ``arguments`` name."""
    options = PARSER.parse(arguments)
    if not options.runs and not options.wandb:
        PARSER.error("RUN is missing")
    from pipeline.report.compare import Request, compare
    from pipeline.run.console import start_console
    from pipeline.train.counting import count_config

    start_console()
    request = Request(options.runs, options.metric, options.out, options.wandb)
    compare(request, count_config, answer, options.watch)


if __name__ == "__main__":
    command(main)
