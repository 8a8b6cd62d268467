"""What every command has in common: its exit codes and its one-line errors."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from pipeline.run import processes, rendezvous
from pipeline.run.config import Config
from pipeline.run.errors import Diverged, Interrupted, UserError


def command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run ``main`` with the command line; exit with 0, 2 (the user's input is wrong), 3 (the
    training diverged), 128 + the signal that stopped it, 1 (another process was lost, or a bug), or
    what a SystemExit of ``main`` says."""
    try:
        main(sys.argv[1:])
    except (UserError, Diverged) as error:
        rendezvous.explain(error)
        _say(f"error: {error}")
        sys.exit(2 if isinstance(error, UserError) else 3)
    except Interrupted as stop:
        rendezvous.explain(stop)
        if processes.is_main() or not stop.together:
            _say(str(stop))
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (reason := rendezvous.explain(error)) is None:
            error.add_note(f"in rank {processes.rank()}")
            raise
        _say(f"error: {reason}")
        os._exit(1)  # an orderly end would wait for the other process
    sys.exit(0)


def _say(text: str) -> None:
    others = f"rank {processes.rank()}: " if processes.size() > 1 else ""
    print(f"{others}{text}", file=sys.stderr, flush=True)


def get_device(config: Config) -> torch.device:
    """The device that ``train.device`` asks for; joins the other processes, if there are any."""
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no CUDA device; set train.device=cpu")
    name = config.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rendezvous.start(name, config.train.timeout, config.run_folder)
    # With an index, since several processes share a machine.
    return (
        torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    )
