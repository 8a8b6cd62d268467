"""Train, evaluate and measure binary neural networks."""

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

from launch.command import HELP, Main, choose, command, summary

# Files of this folder.
COMMANDS = (
    "train", "evaluate", "predict", "export", "study", "compare", "summary", "sync", "prepare",
    "benchmark",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run the command that ``arguments`` name; alone, list all."""
    choices = {name: (_summary(name), _main(name)) for name in COMMANDS}
    choose("", __doc__ or "", choices, arguments or HELP)


def _summary(name: str) -> str:
    """The first line of a command's file, which is not imported for that."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return summary(ast.get_docstring(ast.parse(text)) or "")


def _main(name: str) -> Main:
    return lambda arguments: importlib.import_module(f"launch.{name}").main(arguments)


if __name__ == "__main__":
    command(main)
