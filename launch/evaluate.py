"""Evaluate a checkpoint, ours or an official one, on the validation images.

The last line printed is one JSON object with top1, top5, loss and images; a value that is not
finite is null, and the exit code 3. A checkpoint of ours brings its config, but for the places of
files; of an official one the network is recognised. On a processor, in fp32, the engine of native/
evaluates, with the logits of the plain path to 1e-5 of their spread.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command

PARSER = Parser(
    "evaluate",
    "CHECKPOINT [key=value ...] [--plain]",
    __doc__ or "",
    (
        "runs/quickstart/checkpoints/best.pt",
        "runs/imagenet_resnet18/checkpoints/best.pt data.path=/path/to/imagenet",
    ),
)
PARSER.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that holds a network")
PARSER.add_overrides()
PARSER.add_argument("--plain", action="store_true", help="evaluate by torch alone")


def main(arguments: Sequence[str]) -> None:
    """Evaluate the checkpoint in ``arguments`` on the validation images."""
    options = PARSER.parse(arguments)
    from pipeline.export.engine import on_engine
    from pipeline.export.packed_file import is_packed
    from pipeline.run import processes, rendezvous
    from pipeline.run.commands import command_line
    from pipeline.run.errors import Diverged, UserError
    from pipeline.run.signals import StopSignal
    from pipeline.train.scoring import score

    if is_packed(Path(options.checkpoint)):
        judge = command_line("predict", options.checkpoint)
        raise UserError(f"{options.checkpoint} is an export; {judge} FOLDER judges it")
    with StopSignal("interrupted; an evaluation has nothing to save"):
        result = score(
            Path(options.checkpoint), options.overrides, None if options.plain else on_engine
        )
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    if processes.is_main():
        answer(json.dumps(finite, allow_nan=False))
    rendezvous.stop()
    if bad := [name for name, value in finite.items() if value is None]:
        raise Diverged(f"{options.checkpoint}: {bad[0]} is not finite; take an earlier checkpoint")


if __name__ == "__main__":
    command(main)
