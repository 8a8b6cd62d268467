"""The trials of a study at work: each is a process that trains, some of them at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from pipeline.run import cards
from pipeline.run.commands import ROOT
from pipeline.run.console import logger
from pipeline.run.cores import cores
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.estimate import Estimate
from pipeline.run.files import free_name
from pipeline.run.signals import StopSignal
from pipeline.run.study import Study, Trial, command_of

ERROR = "error: "  # how a command begins the line about a mistake of the user's
PATIENCE = 5.0  # seconds for the last words of a process, whose own children may hold the pipe
TURN = 0.1  # seconds between two looks at the processes


class Failure(NamedTuple):
    """A trial that did not come to its end, the exit code of its process, and what it said."""

    trial: Trial
    code: int
    reason: str


class Process:
    """The process that trains ``trial``; what it says goes to the console behind its name.

    It is alone in a process group, so that Ctrl-C on a terminal does not reach it but through
    ``signal``. ``environment`` holds further variables for it.
    """

    def __init__(self, trial: Trial, environment: Mapping[str, str]) -> None:
        self.trial, self.began = trial, time.monotonic()
        self.epochs_before = trial.epochs_done
        self.reason = ""
        self.process = subprocess.Popen(
            _command(trial.words),
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.reason = line.strip() or self.reason
            logger.info("%s  %s", self.trial.name, line.rstrip())

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def besides(self) -> float:
        """The seconds since it began in which it did not do the epochs that it has recorded."""
        epochs = self.trial.records()[self.epochs_before :]
        return time.monotonic() - self.began - sum(record["seconds"] for record in epochs)

    def code(self) -> int | None:
        """The exit code, in a shell's counting, once the process has ended and all it said was
        read."""
        code = self.process.poll()
        if code is None:
            return None
        self.reader.join(PATIENCE)
        return 128 - code if code < 0 else code


def _command(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-P", "-m", "launch", "train", *words]


def _environment(further: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **further}


def check(trial: Trial) -> None:
    """Raise UserError where a training of ``trial`` would find a mistake in its config or its data,
    by the words of that training."""
    words = (*trial.words, f"run.name={free_name(trial.config.run_folder)}", "--check")
    done = subprocess.run(
        _command(words), env=_environment({}), capture_output=True, encoding="utf-8"
    )
    mistakes = [line for line in done.stderr.splitlines() if line.startswith(ERROR)]
    if done.returncode == 2 and mistakes:
        raise UserError(mistakes[-1].removeprefix(ERROR))


def run_trials(study: Study, jobs: int, redraw: Callable[[], object]) -> list[Failure]:
    """Do the trials of ``study`` that are not finished, ``jobs`` at a time; ``redraw`` is called
    whenever one has ended. Returns those that failed.

    Raises UserError for a mistake in the config or the data of the first, before it begins, and
    Interrupted where a signal asked to stop, when the trials at work have saved and ended.
    """
    with StopSignal("interrupted before a trial began") as stop:
        waiting = study.open
        logger.info("%s: %d trials, %d to do", study.folder, len(study.trials), len(waiting))
        for trial in waiting[:1]:
            check(trial)
        stop.can_save = True
        failures = Runner(study, jobs, stop, redraw).run()
        if stop.signal:
            raise Interrupted(stop.signal, "interrupted; start it again to go on")
    return failures


def tell(failures: Sequence[Failure]) -> None:
    """Say which trials failed, and with which command each is done by itself."""
    for trial, code, reason in failures:
        logger.warning(
            "%s ended with %d (%s); alone: %s", trial.name, code, reason, command_of(trial)
        )


def exit_code(failures: Sequence[Failure]) -> int:
    """The exit code that all of ``failures`` have in common, or 1."""
    codes = {failure.code for failure in failures}
    return codes.pop() if len(codes) == 1 else 1


class Runner:
    """Does the trials of ``study`` that are not finished, ``jobs`` at a time.

    Once ``stop`` has a signal, it is passed on to the trials at work, which save and end, and no
    other is started. ``redraw`` is called whenever a trial has ended.
    """

    def __init__(
        self, study: Study, jobs: int, stop: StopSignal, redraw: Callable[[], object]
    ) -> None:
        self.study, self.jobs, self.stop, self.redraw = study, jobs, stop, redraw
        self.waiting = study.open
        self.running: dict[int, Process] = {}  # by their places, from 0
        self.failures: list[Failure] = []
        self.estimate = Estimate(study, jobs)

    def run(self) -> list[Failure]:
        """Do all that can be done; returns what failed."""
        passed_on = 0
        try:
            while self.running or (self.waiting and not self.stop.signal):
                self._start()
                if self.stop.signal and not passed_on:
                    passed_on = self.stop.signal
                    self._signal(passed_on)
                self._collect()
                self.estimate.tell_when_known(self.left())
                time.sleep(TURN)
        finally:
            self._signal(signal.SIGTERM)  # of a mistake of ours: nothing is left behind
        return self.failures

    def left(self) -> list[Trial]:
        """The trials at work and those that wait."""
        return [*(process.trial for process in self.running.values()), *self.waiting]

    def _start(self) -> None:
        """Begin trials in the places that are free."""
        for place in range(self.jobs):
            if place not in self.running and self.waiting and not self.stop.signal:
                trial = self.waiting.pop(0)
                logger.info("%s: begins, %d wait", trial.name, len(self.waiting))
                self.running[place] = Process(trial, share(place, self.jobs))

    def _signal(self, number: int) -> None:
        for process in self.running.values():
            process.signal(number)

    def _collect(self) -> None:
        """Take in the trials that have ended."""
        for place, process in list(self.running.items()):
            if (code := process.code()) is not None:
                del self.running[place]
                self._end(process, code)

    def _end(self, process: Process, code: int) -> None:
        trial = process.trial
        if code == 0:
            self.estimate.besides.append(process.besides())
        elif not self.stop.signal:
            self.failures.append(Failure(trial, code, process.reason))
            logger.warning("%s ended with %d", trial.name, code)
        self.redraw()
        if not self.stop.signal:
            self.estimate.tell(self.left())


def share(place: int, jobs: int) -> dict[str, str]:
    """The variables that give the trial at ``place`` its share of the machine among ``jobs``: its
    threads, unless the person has set them, and one of the GPUs that this process may use."""
    if jobs == 1:
        return {}
    threads = max(1, cores() // jobs)
    gpus = _gpus()
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        **({cards.VISIBLE: gpus[place % len(gpus)]} if gpus else {}),
    }


def _gpus() -> list[str]:
    shown = os.environ.get(cards.VISIBLE)
    if shown is not None:
        return [name for name in shown.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
