"""How many threads a training works with: as many as the machine grants, and others leave it.

An operation is done when its last thread is, so that one which waits for a core stops them all.
"""

import os
from typing import NamedTuple

import torch

from pipeline.run import environment
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.cores import affinity, cores, load

NAME = "OMP_NUM_THREADS"


class Choice(NamedTuple):
    """A number of threads, and why it is that."""

    threads: int
    reason: str

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}: {self.reason}"


def settle_threads(config: Config, begun: int | None = None, *, looks: bool = True) -> Config:
    """Let this process take as many threads as ``choose`` finds, say how many, and why; returns
    ``config`` with their number.

    ``begun``: the number with which a run began that goes on. Sums of torch's may differ in their
    last bits by it, so it stays the same as long as nobody asks for another.
    """
    choice = choose(config.train.threads, begun, looks=looks and not config.deterministic)
    logger.info("%s", choice)
    torch.set_num_threads(choice.threads)
    return config.changed({"train.threads": choice.threads})


def take_threads(wanted: int | None) -> None:
    """Let this process take as many threads as ``choose`` finds, without a word."""
    torch.set_num_threads(choose(wanted).threads)


def choose(wanted: int | None, begun: int | None = None, *, looks: bool = True) -> Choice:
    """The threads for this process: ``wanted``, else what a person put into OMP_NUM_THREADS, else
    ``begun``, else its share of the cores; never more than there are.

    ``looks``: cores that other programs keep busy at the moment are left to them, where no other
    process trains along.
    """
    most, processes = cores(), _processes()
    for number, reason in ((wanted, "train.threads"), (_given(processes), NAME)):
        if number:
            few = "" if number <= most else f"={number}, but this process may use {_count(most)}"
            return Choice(min(number, most), reason + few)
    if processes > 1:
        return Choice(max(1, most // processes), f"{processes} processes share {_count(most)}")
    if begun and begun <= most:
        return Choice(begun, "as the run began")
    return _beside_others(most, round(load()) if looks else 0)


def _processes() -> int:
    """How many processes of this machine train together."""
    return environment.processes_here() or 1 if environment.world_size() > 1 else 1


def _beside_others(most: int, busy: int) -> Choice:
    """Of ``most`` cores, those that are left where others keep ``busy`` of this machine's."""
    every = len(affinity())
    free = max(1, min(most, every - busy))
    if free == most:
        return Choice(most, f"this process may use {_count(most)}")
    return Choice(
        free, f"other programs keep {busy} of {_count(every)} busy; train.threads={most} takes all"
    )


def _count(number: int) -> str:
    return f"{number} core{'s' if number > 1 else ''}"


def _given(processes: int) -> int | None:
    """OMP_NUM_THREADS, where it is a number. Among several processes, 1 is no person's choice but
    what torchrun sets where there is none."""
    text = os.environ.get(NAME, "").partition(",")[0].strip()
    if not text.isdecimal() or int(text) < 1 or (processes > 1 and int(text) == 1):
        return None
    return int(text)
