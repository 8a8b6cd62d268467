"""Write a trained network as a file for elsewhere, with one bit a binary weight.

KIND is packed, a safetensors file; onnx, a graph for onnxruntime and others; openvino, a graph
whose binary convolutions run on bits; or hub, a folder in Hugging Face's layout. MODEL is a
checkpoint, ours or an official one, or a packed file. OUT is where to write; left out, it is beside
MODEL. Real weights in fewer bytes change predictions: float16 and int8 are written with a warning,
and with the accuracy that they leave on the validation images (data.path=...). docs/inference.md
says what is in the files, and what stays exact.
"""

from collections.abc import Sequence
from pathlib import Path

from launch.command import Parser, answer, command, is_override, whole
from pipeline.run.errors import UserError

KINDS = ("packed", "onnx", "openvino", "hub")
REAL = ("float32", "classifier16", "float16", "int8")

PARSER = Parser(
    "export",
    "MODEL --to KIND [OUT] [--real KIND] [--weights KIND] [--opset N] [--push REPO] "
    "[key=value ...]",
    __doc__ or "",
    (
        "runs/quickstart/checkpoints/best.pt --to packed",
        "runs/imagenet_resnet18/checkpoints/best.pt --to packed r18.safetensors "
        "--real classifier16",
        "r18.safetensors --to onnx",
        "runs/quickstart/checkpoints/best.pt --to hub shapes --push user/shapes",
    ),
)
PARSER.add_argument("model", metavar="MODEL", help="a file that holds a network")
PARSER.add_argument("--to", metavar="KIND", required=True, choices=KINDS, help=", ".join(KINDS))
PARSER.add_argument(
    "--real", metavar="KIND", default="float32", choices=REAL,
    help=f"how real weights are stored: {', '.join(REAL)}",
)  # fmt: skip
PARSER.add_argument(
    "--weights", metavar="KIND", default="bits", choices=("bits", "float"),
    help="onnx: bits, which are expanded when the file is loaded, or float, which is larger",
)  # fmt: skip
PARSER.add_argument("--opset", metavar="N", type=whole(1), help="onnx: of its operators")
PARSER.add_argument(
    "--push", metavar="REPO",
    help="hub: send the folder to this repository; without it nothing leaves the machine",
)  # fmt: skip
PARSER.add_argument(
    "words", metavar="OUT", nargs="*", default=[],
    help="where to write, and key=value: other values than the config's",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Export the network that ``arguments`` name."""
    options = PARSER.parse(arguments)
    out, overrides = _split(options.words)
    if options.push and options.to != "hub":
        raise UserError("--push sends a folder; write --to hub FOLDER with it")
    from pipeline.export.optional import load
    from pipeline.export.output import Options
    from pipeline.export.source import open_source
    from pipeline.export.targets import export
    from pipeline.run.console import start_console

    start_console()
    if options.push:
        send = load("pipeline.export.push:push", "--push", ("huggingface_hub",))
    model = Path(options.model)
    source = open_source(model, overrides)
    how = Options(options.real, options.weights, options.opset)
    place = export(source, model, options.to, out, how)
    answer(send(place, options.push) if options.push else str(place))


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """OUT, if it is there, and the key=value among ``words``."""
    overrides = [word for word in words if is_override(word)]
    places = [word for word in words if word not in overrides]
    if len(places) > 1:
        raise UserError(f"{places[1]} is one word too many; {PARSER.usage_line}")
    return (Path(places[0]) if places else None), overrides


if __name__ == "__main__":
    command(main)
