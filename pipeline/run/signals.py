"""Signals that ask a run to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.run import processes
from pipeline.run.errors import Interrupted, UserError

AGREE_EVERY = 8  # steps between two looks at what the other processes were asked
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
FAILED = 1000  # stands for a failure where processes agree on the number of a signal


class StopSignal:
    """What a run does at SIGINT, SIGTERM, SIGUSR1 and SIGHUP, within this object's context.

    Before ``can_save`` is set they raise ``Interrupted`` with the message ``unsaved``; after it
    they only set ``signal``, and the trainer stops when it has saved. A second SIGINT ends the
    process at once. SIGHUP stays ignored where it was, as under nohup.
    """

    def __init__(self, unsaved: str = "interrupted before the training began") -> None:
        self.unsaved = unsaved
        self.signal = 0
        self.failure: UserError | None = None
        self.agreed = 0
        self.can_save = False
        self.previous: dict[int, Any] = {}
        self.listener: _Listener | None = None

    def __enter__(self) -> "StopSignal":
        for name in NAMES:
            number = getattr(signal, name, None)
            if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
                self.previous[number] = signal.signal(number, self._note)
        self.listener = _Listener(frozenset(self.previous), self._answer)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.listener:
            self.listener.end()

    def fail(self, error: UserError) -> None:
        """Ask all processes to save and to end with ``error``: the records cannot be written."""
        self.failure = self.failure or error

    def is_asked(self, done: int, total: int) -> bool:
        """Whether any process was asked to stop, after ``done`` of ``total`` steps.

        All processes must call it after each step, and all learn it after the same one.
        """
        asked = FAILED if self.failure else self.signal
        if processes.size() > 1:
            if done % AGREE_EVERY and done != total:
                return False
            asked = processes.largest(asked)
        if asked and asked != FAILED:  # a signal that came meanwhile is kept
            self.signal = asked
        self.agreed = asked
        return bool(asked)

    def has_failed(self) -> bool:
        """Whether ``fail`` was called in any process; all must call this together."""
        self.agreed = processes.largest(FAILED if self.failure else 0)
        return bool(self.agreed)

    def end(self, path: Path) -> Interrupted | UserError:
        """What the run ends with, after it was asked to stop and has saved ``path``."""
        if self.agreed == FAILED:
            what, _, remedy = str(self.failure or "the main process cannot write").partition("; ")
            return UserError(f"{what} (saved {path}); {remedy or 'see what it says'}")
        return Interrupted(self.signal, f"interrupted; saved {path}; start it again to go on")

    def _note(self, number: int, _: object) -> None:
        if not self.can_save:
            raise Interrupted(number, self.unsaved, together=False)
        self.signal = number

    def _answer(self, number: int) -> str:
        plan = "saving after this step" if self.can_save else "ending"
        again = ", unsaved" if self.can_save else ""
        if number == signal.SIGINT:
            plan += f" (Ctrl-C again: at once{again})"
        return f"{signal.strsignal(number)}: {plan}"


class _Listener(threading.Thread):
    """Answers a signal at once, and ends the process at a second SIGINT, also while the main thread
    works in C: Python's handlers wait for that to return.

    Python itself writes the number of each signal to a pipe when it arrives; this thread reads it.
    ``answer`` says what follows from one of ``numbers``, in words.
    """

    def __init__(self, numbers: frozenset[int], answer: Callable[[int], str]) -> None:
        super().__init__(name="signals", daemon=True)
        self.numbers, self.answer = numbers, answer
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.previous = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.start()

    def run(self) -> None:
        heard: set[int] = set()
        while number := os.read(self.reader, 1)[0]:
            if number == signal.SIGINT and number in heard:
                os._exit(128 + number)
            if number in self.numbers - heard and processes.is_main():
                self._say(self.answer(number))
            heard.add(number)

    def end(self) -> None:
        """Stop listening."""
        signal.set_wakeup_fd(self.previous)
        os.write(self.writer, b"\0")
        self.join()
        os.close(self.reader)
        os.close(self.writer)

    def _say(self, text: str) -> None:
        """Write to the console itself: the main thread may hold the locks of what lies between."""
        with contextlib.suppress(OSError):
            start = "\n" if os.isatty(2) else ""  # below a progress bar
            os.write(2, f"{start}{text}\n".encode())
