"""Count what a network holds and what it costs: parameters, bits, operations, memory.

By layer and in total, and without data: for a config, or for the network in a checkpoint, ours or
an official one. docs/counting.md says how it is counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command, find_config

PARSER = Parser(
    "summary",
    "CONFIG|CHECKPOINT [key=value ...] [--json]",
    __doc__ or "",
    (
        "imagenet_resnet18",
        "cifar10_resnet20 model.bits=1w32a",
        "runs/quickstart/checkpoints/best.pt --json",
    ),
)
PARSER.add_argument(
    "network", metavar="CONFIG|CHECKPOINT",
    help="a YAML file, the name of one in configs/, or a file that holds a network",
)  # fmt: skip
PARSER.add_overrides()
PARSER.add_argument("--json", action="store_true", help="one JSON object, with all digits")
CONFIGS = ("", ".yaml", ".yml")  # how the name of a config may end


def main(arguments: Sequence[str]) -> None:
    """Count the network that ``arguments`` name."""
    options = PARSER.parse(arguments)
    from pipeline.report.summary import table
    from pipeline.run.config import load_config
    from pipeline.train.counting import count_checkpoint, count_config

    path = Path(options.network)
    if path.suffix in CONFIGS:
        config = load_config(find_config(options.network), options.overrides)
        summary = count_config(config)
    else:
        summary = count_checkpoint(path, options.overrides)
    answer(json.dumps(summary) if options.json else table(summary))


if __name__ == "__main__":
    command(main)
