"""How long the trials of a study will take, by the epochs that they have recorded so far."""

import time
from collections.abc import Sequence
from statistics import fmean

from pipeline.run.console import clock, logger
from pipeline.run.study import Study, Trial

LOOK_EVERY = 1.0  # seconds between two looks for a first epoch


class Estimate:
    """The time that is left for trials of ``study`` of which ``jobs`` are done at a time.

    It is the number of epochs that are left, at the mean seconds of all recorded ones, and for each
    trial that is left what those that have ended took ``besides``, to start and to save.
    """

    def __init__(self, study: Study, jobs: int) -> None:
        self.study, self.jobs = study, jobs
        self.besides: list[float] = []  # seconds
        self.is_known = False
        self.looked = 0.0

    def tell_when_known(self, trials: Sequence[Trial]) -> None:
        """Tell it once, as soon as there is an epoch to go by."""
        if not self.is_known and time.monotonic() - self.looked > LOOK_EVERY:
            self.looked = time.monotonic()
            self.tell(trials)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell it for the ``trials`` that are left, if there is an epoch to go by."""
        records = [record for trial in self.study.trials for record in trial.records()]
        self.is_known = bool(records)
        if not (records and trials):
            return
        epochs = sum(trial.config.train.epochs - trial.epochs_done for trial in trials)
        epoch, besides = fmean(each["seconds"] for each in records), fmean(self.besides or [0.0])
        left = (epochs * epoch + len(trials) * besides) / max(1, min(self.jobs, len(trials)))
        logger.info(
            "about %s left: %d trials with %d epochs of %.1f s, and %.1f s besides for each",
            clock(left), len(trials), epochs, epoch, besides,
        )  # fmt: skip
