"""The ways a run ends badly that are not bugs."""


class UserError(ValueError):
    """What the user gave is wrong. The message is one line that names the key or the file and
    the remedy; a command prints it behind ``error: `` and exits with code 2."""


class Diverged(RuntimeError):
    """The training produced a value that is not finite. The message says where; exit code 3."""


class Interrupted(BaseException):
    """A signal asked the run to stop, and it did; the exit code is 128 + ``signal``.

    ``together`` says that all processes of the run stopped so, after saving. It is no Exception,
    because it may be raised anywhere and no handler of mistakes should catch it.
    """

    def __init__(self, signal: int, message: str, *, together: bool = True) -> None:
        super().__init__(message)
        self.signal, self.together = signal, together
