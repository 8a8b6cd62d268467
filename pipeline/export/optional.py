"""What takes a package that not every machine has, and is imported only when it is used."""

import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.run.errors import UserError


def load(entry: str, what: str, packages: Sequence[str]) -> Any:
    """What ``entry``, "module:name", names.

    Raises UserError, with the command that installs them, where one of the ``packages`` that
    ``what`` takes is missing.
    """
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        install = shlex.join([sys.executable, "-m", "pip", "install", *packages])
        raise UserError(f"{what} takes a package that is not installed; {install}") from None
