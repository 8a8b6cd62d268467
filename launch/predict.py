"""Say what is on images: the five likeliest classes of each, with their probabilities.

MODEL is a checkpoint, ours or an official one, or a file that export wrote. Where images lie in
folders that are named like classes, their accuracy and a confusion matrix follow. Images that
cannot be read are named and passed over, and the exit code is 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command, is_override
from pipeline.run.errors import UserError

PARSER = Parser(
    "predict",
    "MODEL IMAGE|FOLDER... [key=value ...] [--json] [--csv]",
    __doc__ or "",
    (
        "runs/quickstart/checkpoints/best.pt photo.jpg",
        "r18.safetensors /path/to/imagenet/val --csv",
    ),
)
PARSER.add_argument("model", metavar="MODEL", help="a file that holds a network")
PARSER.add_argument(
    "words", metavar="IMAGE|FOLDER", nargs="+",
    help="image files, folders of them, and key=value: other values than a checkpoint's config's",
)  # fmt: skip
PARSER.add_argument("--json", action="store_true", help="one JSON object, with all digits")
PARSER.add_argument("--csv", action="store_true", help="a row for each image, with all digits")


def main(arguments: Sequence[str]) -> None:
    """Predict the classes of the images that ``arguments`` name."""
    options = PARSER.parse(arguments)
    overrides = [word for word in options.words if is_override(word)]
    named = [word for word in options.words if word not in overrides]
    if not named:
        raise UserError(f"no images are named; {PARSER.usage_line}")
    from pipeline.export.images import find
    from pipeline.export.prediction import predict
    from pipeline.export.predictor import open_predictor
    from pipeline.report import predictions as report
    from pipeline.run.console import start_console

    start_console()
    images = find(named)
    found = predict(open_predictor(Path(options.model), overrides), images)
    if options.json:
        answer(report.in_json(found.images, found.bad, found.confusion))
    elif options.csv:
        answer(report.in_csv(found.images))
    else:
        answer(report.table(found.images, found.confusion))
    if found.bad:
        sys.exit(1)


if __name__ == "__main__":
    command(main)
