"""The device that a run takes."""

import torch

from pipeline.run import cards, rendezvous
from pipeline.run.config import Config
from pipeline.run.environment import processes_here
from pipeline.run.errors import UserError


def get_device(config: Config, *, only_check: bool = False) -> torch.device:
    """The device that ``train.device`` asks for; joins the other processes, if there are any.

    ``only_check``: they are not there yet, but this machine's GPUs must be enough for those of them
    that it is going to have. Raises UserError where there is no such device, or where no training
    could begin on it.
    """
    name = config.train.device
    if name == "cuda" and (reason := cards.why_none()):
        raise UserError(f"train.device=cuda, but {reason}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rendezvous.start(name, config.train.timeout, config.run_folder)
    if only_check and name == "cuda":
        cards.check_number(processes_here())
    # With an index, since several processes share a machine.
    return cards.current() if name == "cuda" else torch.device(name)
