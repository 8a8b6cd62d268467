"""The number formats of a training: that of the network, and those of autocast."""

import contextlib
from typing import Any

import torch

from models import BinaryNetwork
from models.layers import NormBinarize
from pipeline.data.loader import Loader
from pipeline.run import processes
from pipeline.run.config import Config

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

COMPILED_FROM = 100_000  # images x epochs that earn on a CPU the seconds it takes


def is_compiled(config: Config, device: torch.device, loader: Loader) -> bool:
    """Whether torch.compile fuses the blocks, as ``train.compile`` says."""
    choice, images = config.train.compile, loader.images * config.train.epochs
    is_worth_it = images >= COMPILED_FROM and config.train.precision != "fp64"
    return device.type == "cpu" and (choice == "true" or (choice == "auto" and is_worth_it))


def to_device(model: BinaryNetwork, config: Config, device: torch.device) -> BinaryNetwork:
    """``model`` on ``device``, in channels_last and in the dtype in which its weights are kept."""
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    model = model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_progress(model.progress)  # in the new dtype
    for module in model.modules():
        if isinstance(module, NormBinarize):
            module.sync = processes.size() > 1 and config.train.sync_bn != "false"
    return model


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of ``train.precision``."""
    dtype = AUTOCAST.get(config.train.precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
