"""The device that a run takes."""

import torch

from pipeline.run import rendezvous
from pipeline.run.config import Config
from pipeline.run.errors import UserError


def get_device(config: Config) -> torch.device:
    """The device that ``train.device`` asks for; joins the other processes, if there are any.

    Raises UserError where there is no such device.
    """
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no CUDA device; set train.device=cpu")
    name = config.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rendezvous.start(name, config.train.timeout, config.run_folder)
    # With an index, since several processes share a machine.
    return (
        torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    )
