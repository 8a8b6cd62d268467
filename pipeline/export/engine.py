"""A network of torch that is evaluated by native/engine.py on a processor."""

import torch
from torch import Tensor, nn

from models import BinaryNetwork
from native.build import NoLibrary
from native.engine import Engine
from pipeline.export.fuse import fused
from pipeline.export.pack import pack
from pipeline.export.packed import About, Images
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError

# The engine asks for the steps and the tensors alone.
UNNAMED = About("", "", "", "", None, Images(1, 1, 1.0, (0.0,) * 3, (1.0,) * 3))
LEFT_TO_TORCH = "evaluated by torch alone, since the engine of native/ cannot: %s"


class OnEngine(nn.Module):
    """``network`` in evaluation: (N, 3, H, W) fp32 -> logits (N, classes), without gradients.

    The logits differ from those of ``network`` by what the order of sums after the last sign makes,
    about 1e-6 of their spread. Once images do not fit the engine, the network itself goes on.
    """

    def __init__(self, network: BinaryNetwork, engine: Engine) -> None:
        super().__init__()
        self.network = network
        self.engine: Engine | None = engine

    def forward(self, images: Tensor) -> Tensor:
        if self.engine:
            try:
                return torch.from_numpy(self.engine(images.numpy(), torch.get_num_threads()))
            except (ValueError, RuntimeError) as error:
                logger.info(LEFT_TO_TORCH, error)
                self.engine = None
        return self.network(images)


def on_engine(network: BinaryNetwork, config: Config, device: torch.device) -> nn.Module:
    """``network``, ready to be evaluated as ``config`` says, on the engine where that can take it.

    That is a network of ±1 in fp32 on a processor with vector instructions that the engine knows. A
    line of the log says why another is left to torch.
    """
    if device.type != "cpu" or config.train.precision != "fp32" or network.bits != "1w1a":
        return network
    try:
        engine = Engine(fused(pack(network, UNNAMED)))
    except (NoLibrary, UserError, ValueError) as error:
        logger.info(LEFT_TO_TORCH, error)
        return network
    if engine.instructions == "portable":
        return network  # torch knows the processor better
    logger.info("evaluated by the engine of native/, with %s", engine.instructions)
    return OnEngine(network, engine)
