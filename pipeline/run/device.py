"""The device that a run takes."""

import torch

from pipeline.run import cards, rendezvous
from pipeline.run.config import Config
from pipeline.run.errors import UserError


def get_device(config: Config) -> torch.device:
    """The device that ``train.device`` asks for; joins the other processes, if there are any.

    Raises UserError where there is no such device, or where no training could begin on it.
    """
    name = config.train.device
    if name == "cuda" and (reason := cards.why_none()):
        raise UserError(f"train.device=cuda, but {reason}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rendezvous.start(name, config.train.timeout, config.run_folder)
    # With an index, since several processes share a machine.
    return cards.current() if name == "cuda" else torch.device(name)
