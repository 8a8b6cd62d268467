"""What every command has in common: its grammar, its help, its one-line errors, its exit codes.

Nothing here imports torch, which takes seconds: ``--help`` and mistakes are answered at once. So a
command declares its ``Parser`` first, and imports what it works with when it starts to work.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.run import ending, environment
from pipeline.run.commands import command_line, shipped_configs
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.streams import forgive_failures, give

Main = Callable[[Sequence[str]], None]  # takes the words behind the command's own
HELP = ("-h", "--help")
ROOMS = ("native", "kernels", "models", "pipeline", "launch", "tests")


def command(main: Main) -> NoReturn:
    """Run ``main`` with the command line; exit with 0, 2 (the user's input is wrong), 3 (the
    training diverged), 128 + the signal that stopped it, 1 (another process was lost, or a bug), or
    what a SystemExit of ``main`` says. Neither a console that fails nor what libraries leave
    behind changes any of this."""
    forgive_failures()
    ending.prepare()
    try:
        _run(main)
    except SystemExit as end:
        if main.__module__ == "__main__" and isinstance(end.code, int):  # else others are at work
            ending.end_soon(end.code)
        raise


def _run(main: Main) -> NoReturn:
    try:
        main(sys.argv[1:])
    except (UserError, Diverged) as error:
        _report(error)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        _explain(stop)
        if _place()[0] == 0 or not stop.together:
            _say(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except Exception as error:
        if (reason := _explain(error)) is not None:
            _say(f"error: {reason}")
            os._exit(1)  # an orderly end would wait for the other process
        if isinstance(error, ModuleNotFoundError) and _is_foreign(error.name):
            _say(f"error: {sys.executable} has no {error.name}; make setup installs what is needed")
            sys.exit(2)
        error.add_note(f"in rank {_place()[0]}")
        raise
    sys.exit(0)


def _is_foreign(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] not in ROOMS


def _explain(error: BaseException) -> str | None:
    """``rendezvous.explain``; before torch is imported, there is nobody to explain it to."""
    if "torch" not in sys.modules:
        return None
    from pipeline.run import rendezvous

    return rendezvous.explain(error)


def _place() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if "torch" not in sys.modules:
        return 0, 1
    from pipeline.run import processes

    return processes.rank(), processes.size()


def _report(error: UserError | Diverged) -> None:
    """Say what is wrong: once, where all processes found the same; else with the rank."""
    rank, size = _place()
    is_shared, is_alone = (getattr(error, f"is_{name}", False) for name in ("shared", "alone"))
    if size == 1:
        # Before the processes have met, those of one machine find the same: its first one speaks.
        speaks = is_alone or (environment.place() or (0, 0))[0] == 0
    else:
        speaks = not (is_shared or _ends_alike(error))
    line = f"error: {_printable(str(error))}"
    if speaks:
        _say(line)
    elif size > 1 and rank == 0:
        print(line, file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # torchrun ends all processes as soon as one has ended: that one has spoken


def _printable(text: str) -> str:
    """``text`` as one line: a name of a file may hold a line feed, or what moves a cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _ends_alike(error: BaseException) -> bool:
    from pipeline.run import rendezvous

    return rendezvous.ends_alike(error)


def _say(text: str) -> None:
    rank, size = _place()
    if size == 1 and (place := environment.place()):
        rank = place[1]
    others = f"rank {rank}: " if size > 1 or rank else ""
    print(f"{others}{text}", file=sys.stderr, flush=True)


def answer(line: str) -> None:
    """Print the line that the command was asked for; raises UserError where nobody gets it."""
    try:
        give(line)
    except OSError as error:
        raise UserError(
            f"stdout does not take the result: {error.strerror}; let it go to a file: > result.json"
        ) from None


class Parser(argparse.ArgumentParser):
    """Reads the words behind a command. A mistake is a UserError of one line; options cannot be
    abbreviated, and may stand between the other words.

    ``words``: the command's own, such as "prepare verify". ``usage``: what stands behind them.
    ``about``: a summary in one line, then what else there is to know. ``examples``: each is what
    may stand behind the command.
    """

    def __init__(self, words: str, usage: str, about: str, examples: Iterable[str]) -> None:
        self.usage_line = f"usage: {command_line(*words.split())} {usage}".rstrip()
        self.summary = summary(about)
        lines = [f"%(prog)s {each}".rstrip() for each in examples]
        super().__init__(
            prog=command_line(*words.split()),
            usage=f"%(prog)s {usage}",
            description=inspect.cleandoc(about),
            epilog="\n  ".join(["examples:", *lines]) if lines else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_config(self) -> None:
        """Take CONFIG and key=value: ``find_config(options.config)`` and ``options.overrides``."""
        self.add_argument(
            "config", metavar="CONFIG", help="a YAML file, or the name of one in configs/"
        )
        self.add_overrides()

    def add_overrides(self) -> None:
        """Take key=value: ``options.overrides``."""
        self.add_argument(
            "overrides", metavar="key=value", nargs="*", default=[],
            help="other values than the config's",
        )  # fmt: skip

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The values of ``arguments``; ``--help`` prints the help and exits with 0."""
        words = list(arguments)
        end = words.index("--") if "--" in words else len(words)
        for place, word in enumerate(words[:end]):
            name = word.partition("=")[0]
            action = self._option_string_actions.get(name)
            if word.startswith("-") and not action:
                raise UserError(f"{name} is no option; {self._hint(name)}")
            if action and action.nargs == "?" and word == name:  # it takes a value behind = only
                words[place] = f"{word}={action.const}"
        options, rest = self.parse_known_intermixed_args(words)
        if rest:
            raise UserError(f"{rest[0]} is one word too many; {self.usage_line}")
        return options

    def _hint(self, option: str) -> str:
        if "." in option:
            return "a key of the config is set without dashes, as in optim.lr=0.05"
        known = [each for each in self._option_string_actions if each.startswith("--")]
        return nearest(option, known) or self.usage_line

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with what argparse found."""
        text = message.removeprefix("argument ")
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            text = f"{missing} is missing"
        raise UserError(f"{text}; {self.usage_line}")

    def format_help(self) -> str:
        """The help. An option whose value may be left out takes one behind = only."""
        return re.sub(r"(--\w+) \[(\w+)\]", r"\1[=\2]", super().format_help())


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for ``Parser.add_argument``: a whole number within limits."""
    limits = f"of at least {low}" if high is None else f"between {low} and {high}"

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text) or not low <= int(text) <= (high or int(text)):
            raise argparse.ArgumentTypeError(f"{text} is no whole number {limits}")
        return int(text)

    return number


def summary(about: str) -> str:
    """The first line."""
    return inspect.cleandoc(about).partition("\n")[0]


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that names the most similar word; nothing if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def choose(
    words: str, about: str, choices: Mapping[str, tuple[str, Main]], arguments: Sequence[str]
) -> None:
    """Go on with the choice that the first of ``arguments`` names.

    ``words``: those of the command so far. ``choices``: the summary of each, and what runs it.
    """
    line = command_line(*words.split())
    first = arguments[0] if arguments else ""
    if first in HELP:
        rows = "\n".join(f"  {name:10} {text}" for name, (text, _) in choices.items())
        print(f"usage: {line} {{{','.join(choices)}}} ...\n\n{inspect.cleandoc(about)}\n")
        print(f"{rows}\n\nWith --help behind it, each says what it takes.")
    elif first in choices:
        choices[first][1](arguments[1:])
    elif hint := nearest(first, choices):
        raise UserError(f"there is no command {line} {first}; {hint}")
    else:
        what = f"there is no command {line} {first}" if first else "a word is missing"
        raise UserError(f"{what}; usage: {line} {{{','.join(choices)}}} ...")


def is_override(word: str) -> bool:
    """Whether a word of the command line is key=value, rather than the name of a file."""
    return re.match(r"[a-z0-9_]+(\.[a-z0-9_]+)?=", word) is not None and not os.path.exists(word)


def find_config(text: str, folder: str = "configs") -> Path:
    """The YAML file that ``text`` names: a file, relative to where the person stands, or one in
    this ``folder`` of the checkout by its name. Raises UserError with the nearest name where there
    is none."""
    if os.path.exists(text) and not os.path.isdir(text):
        return Path(text)
    known = shipped_configs(folder)
    if text in known:
        return known[text]
    hint = nearest(Path(text).stem, known) or f"names are {', '.join(known)}"
    raise UserError(f"config {text}: there is no such file, nor is it a name in {folder}/; {hint}")
