"""A trained epoch that is not lost where its evaluation fails."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from pipeline.run import processes
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.console import logger
from pipeline.run.errors import Diverged


@contextlib.contextmanager
def saved_on_failure(content: dict[str, Any], store: CheckpointStore) -> Iterator[None]:
    """Save ``content``, a trainer's state as it is when this context begins, if it fails.

    The main process saves without asking the others, of whom one may be lost. After a divergence
    nothing is saved, as it would only come again.
    """
    content["indicators"] = copy.deepcopy(content["indicators"])  # a record starts them anew
    try:
        yield
    except Diverged:
        raise
    except Exception:
        if processes.is_main():
            _save(content, store)
        raise


def _save(content: dict[str, Any], store: CheckpointStore) -> None:
    try:
        path = store.save(content)
    except Exception as error:  # the run ends with what came first
        logger.warning("the epoch could not be saved: %s", error)
    else:
        logger.info("saved %s; started again, the run goes on with the evaluation", path)
