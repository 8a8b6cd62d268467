"""The ways a run ends badly that are not bugs."""


class UserError(ValueError):
    """What the user gave is wrong. The message is one line that names the key or the file and
    the remedy; a command prints it behind ``error: `` and exits with code 2."""


class Diverged(RuntimeError):
    """The training produced a value that is not finite. The message says where; exit code 3."""


class Interrupted(BaseException):
    """A signal asked the run to stop, and it did; exit code 128 + ``signal``. ``together``: so did
    all its processes, after saving. No Exception: it may come anywhere, and is nobody's mistake
    to mend."""

    def __init__(self, signal: int, message: str, *, together: bool = True) -> None:
        super().__init__(message)
        self.signal, self.together = signal, together
