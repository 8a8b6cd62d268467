"""Several mistakes of the user, reported together."""

import contextlib
from collections.abc import Iterator

from pipeline.run import processes
from pipeline.run.errors import UserError


class Problems:
    """Collects the ``UserError`` of several checks that do not need each other's results."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within this context a ``UserError`` that all processes raise is noted and ends the
        context only."""
        try:
            yield
        except UserError as error:
            if error.is_alone or (not error.is_shared and processes.size() > 1):
                raise  # the others go on and cannot be asked anything any more
            self.found.append(str(error))

    def raise_all(self) -> None:
        """Raise what was noted as one ``UserError``, if there is anything."""
        if self.found:
            raise UserError.shared("; also ".join(dict.fromkeys(self.found)))
