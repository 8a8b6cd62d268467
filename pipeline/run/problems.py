"""Several mistakes of the user, reported together."""

import contextlib
from collections.abc import Iterator

from pipeline.run import processes
from pipeline.run.errors import UserError

MOST = 8  # mistakes that one error names


class Problems:
    """Collects the ``UserError`` of several checks that do not need each other's results.

    ``local`` says that the checks ask the other processes nothing, so that each may fail on one
    process alone.
    """

    def __init__(self, *, local: bool = False) -> None:
        self.local = local
        self.found: list[str] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within this context a ``UserError`` is noted and ends the context only.

        One that other processes may not have is raised all the same, unless the checks are local:
        the others go on, and cannot be asked anything any more.
        """
        try:
            yield
        except UserError as error:
            is_everywhere = error.is_shared or (processes.size() == 1 and not error.is_alone)
            if not (self.local or is_everywhere):
                raise
            told = error.mistakes or (str(error),)
            self.found += [each for each in told if each not in self.found]

    def raise_all(self) -> None:
        """Raise the first ``MOST`` of what was noted as one ``UserError``, if there is anything."""
        if not self.found:
            return
        more = f"; also {len(self.found) - MOST} more" if len(self.found) > MOST else ""
        text = "; also ".join(self.found[:MOST]) + more
        error = UserError(text) if self.local else UserError.shared(text)
        error.mistakes = tuple(self.found)
        raise error
