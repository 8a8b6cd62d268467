"""Signals that ask a run to stop."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.run import processes
from pipeline.run.errors import Interrupted

# Between two looks at what the other processes were asked: steps at most, and seconds, unless a
# single step takes longer. torchrun kills after 30 s.
AGREE_EVERY, AGREE_WITHIN = 8, 2.0
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class StopSignal:
    """What a run does at SIGINT, SIGTERM, SIGUSR1 and SIGHUP, within this object's context.

    Before ``can_save`` is set they raise ``Interrupted`` with the message ``unsaved``; after it
    they only set ``signal``, and the trainer stops when it has saved. A second SIGINT ends the
    process at once. SIGHUP stays ignored where it was, as under nohup.
    """

    def __init__(self, unsaved: str = "interrupted before the training began") -> None:
        self.unsaved = unsaved
        self.signal = 0
        self.can_save = False
        self.previous: dict[int, Any] = {}
        self.listener: _Listener | None = None
        self.gap, self.since = 1, 0  # steps from one look to the next, and since the last one
        self.looked = time.monotonic()

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

    def is_asked(self, done: int, total: int) -> bool:
        """Whether any process was asked to stop, after ``done`` of ``total`` steps.

        All processes must call it after each step, and all learn it after the same one.
        """
        if processes.size() == 1:
            return bool(self.signal)
        self.since += 1
        if self.since < self.gap and 0 < done != total:  # an evaluation begins with 0
            return False
        if agreed := processes.largest(self.signal):  # a signal that came meanwhile is kept
            self.signal = agreed
        self._measure()
        return bool(agreed)

    def _measure(self) -> None:
        """Set the number of steps to the next look, the same in all processes."""
        now = time.monotonic()
        step = processes.largest(round(1000 * (now - self.looked) / self.since))  # milliseconds
        self.gap = min(AGREE_EVERY, int(1000 * AGREE_WITHIN) // max(1, step))
        self.since, self.looked = 0, now

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
