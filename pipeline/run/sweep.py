"""A trial of a wandb sweep: a run that an agent has started, as its environment says."""

import os
import signal
from pathlib import Path

from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

IDENTITY = "wandb_id"  # a file in a run's folder, with the identity that wandb knows it by
LOST = getattr(signal, "SIGUSR1", signal.SIGTERM)  # what a trial gets when its agent is lost


def trial() -> str | None:
    """The identity that the sweep has given to this run; None where no agent has started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def run_name(config: str) -> str:
    """The name of a run of the config by that name: a trial has one of its own, which it has again
    when the sweep starts it again."""
    return f"{config}-{trial()}" if trial() else config


def check_folder(config: Config) -> None:
    """Raise UserError where the folder of this trial is that of another one."""
    if trial() and (found := identity_in(config.run_folder)) and found != trial():
        raise UserError(
            f"run.name is {config.run.name} for every trial of this sweep; leave it out, as each "
            "has a name of its own then"
        )


def identity_in(folder: Path) -> str | None:
    """The identity that the run in ``folder`` has in wandb; None before it was recorded there."""
    try:
        with open_file(folder / IDENTITY) as file:
            return file.read(64).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None


def end_with_agent() -> None:
    """Let a trial save and end when its agent dies, which would leave it behind (on Linux)."""
    if trial():
        processes.end_with_parent(LOST)


def is_to_go_on(exit_code: int) -> bool:
    """Whether this is a trial that lost its agent or its machine, as ``exit_code`` says: a
    scheduler that is about to take the machine away sends the same signal."""
    return trial() is not None and exit_code == 128 + LOST
