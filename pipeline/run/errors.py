"""The ways a run ends badly that are not bugs."""


class UserError(ValueError):
    """What the user gave is wrong. The message is one line that names the key or the file and
    the remedy; a command prints it behind ``error: `` and exits with ``exit_code``.

    ``is_shared`` says that all processes raise the same one, ``is_alone`` that only this one can
    know of it, as of another that did not come. ``mistakes`` are the messages of several errors
    that this one joins; empty where it is a single one.
    """

    exit_code = 2
    is_shared = is_alone = False
    mistakes: tuple[str, ...] = ()

    @classmethod
    def shared(cls, message: str) -> "UserError":
        """The error with ``message`` that all processes raise."""
        error = cls(message)
        error.is_shared = True
        return error

    @classmethod
    def alone(cls, message: str) -> "UserError":
        """The error with ``message`` that only this process can know of."""
        error = cls(message)
        error.is_alone = True
        return error


class Diverged(RuntimeError):
    """The training produced a value that is not finite. The message says where."""

    exit_code = 3


class Interrupted(BaseException):
    """A signal asked the run to stop, and it did; ``exit_code`` is 128 + ``signal``.

    ``together`` says that all processes of the run stopped so, after saving. It is no Exception,
    because it may be raised anywhere and no handler of mistakes should catch it.
    """

    def __init__(self, signal: int, message: str, *, together: bool = True) -> None:
        super().__init__(message)
        self.signal, self.together = signal, together
        self.exit_code = 128 + signal


def first_line(error: BaseException) -> str:
    """The first line of the words of ``error``, or its name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
