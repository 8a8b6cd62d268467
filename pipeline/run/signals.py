"""Signals that ask a run to stop."""

import signal
from typing import Any

from pipeline.run import processes
from pipeline.run.console import logger
from pipeline.run.errors import Interrupted

AGREE_EVERY = 8  # steps between two looks at what the other processes were asked


class StopSignal:
    """What a run does at SIGINT, SIGTERM and SIGUSR1, within this object's context.

    Before ``can_save`` is set they raise ``Interrupted``; after it they only set ``signal``, and
    the trainer stops when it has saved. A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.can_save = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if number := getattr(signal, name, None):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def is_asked(self, done: int, total: int) -> bool:
        """Whether any process was asked to stop, after ``done`` of ``total`` steps.

        All processes must call it after each step, and all learn it after the same one.
        """
        if processes.size() == 1:
            return bool(self.signal)
        if done % AGREE_EVERY and done != total:
            return False
        if agreed := processes.largest(self.signal):  # a signal that came meanwhile is kept
            self.signal = agreed
        return bool(agreed)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # works even while this process waits in C
        if not self.can_save:
            raise Interrupted(number, "interrupted before the training began", together=False)
        self.signal = number
        logger.info(
            "%s: saving after this step (again: at once, unsaved)", signal.strsignal(number)
        )
