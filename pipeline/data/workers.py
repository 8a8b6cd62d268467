"""How many threads or processes that load images this machine bears."""

import threading

from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.cores import cores as granted
from pipeline.run.errors import UserError

PER_CORE, FEWEST = 4, 16  # workers beyond both only wait for each other
SPARE = 16  # threads that a loader and torch start besides
LOADERS = 2  # of training and of validation images, each with its own workers


def limit_workers(config: Config) -> Config:
    """``config`` with no more data.workers than the machine bears, and a line if they are fewer.

    Their number changes the speed alone. Raises UserError where not even one could be started.
    """
    wanted, cores = config.data.workers, granted()
    useful = min(wanted, max(PER_CORE * cores, FEWEST))
    started = startable(LOADERS * useful + SPARE)
    possible = max(0, started - SPARE) // LOADERS
    if possible < min(wanted, 1):
        raise UserError(
            f"data.workers={wanted}, but this process can start {started} threads only; raise the "
            "limit of processes (ulimit -u, or --pids-limit in docker)"
        )
    workers = min(useful, possible)
    if workers == wanted:
        return config
    reason = f"this process has {cores} cores" if workers == useful else "no more can be started"
    logger.info("data.workers: %d -> %d, as %s", wanted, workers, reason)
    return config.changed({"data.workers": workers})


def startable(count: int) -> int:
    """How many of ``count`` threads can be started, found by starting them."""
    end, threads = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:  # a limit of the user, of the container, or of memory
        pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)
