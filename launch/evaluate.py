"""Evaluate a checkpoint, ours or an official one, on the validation images.

The last line printed is one JSON object with top1, top5, loss and images. A checkpoint of ours
brings its config, but for the places of files; of an official one the network is recognised.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command

PARSER = Parser(
    "evaluate",
    "CHECKPOINT [key=value ...]",
    __doc__ or "",
    (
        "runs/quickstart/checkpoints/best.pt",
        "runs/imagenet_resnet18/checkpoints/best.pt data.path=/path/to/imagenet",
    ),
)
PARSER.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that holds a network")
PARSER.add_overrides()


def main(arguments: Sequence[str]) -> None:
    """Evaluate the checkpoint in ``arguments`` on the validation images."""
    options = PARSER.parse(arguments)
    from pipeline.run import processes, rendezvous
    from pipeline.run.signals import StopSignal
    from pipeline.train.scoring import score

    with StopSignal("interrupted; an evaluation has nothing to save"):
        result = score(Path(options.checkpoint), options.overrides)
    if processes.is_main():
        answer(json.dumps(result))
    rendezvous.stop()


if __name__ == "__main__":
    command(main)
