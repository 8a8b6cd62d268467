"""The number formats of a training: which one it takes, that of the network, and autocast's.

bf16 was measured on a processor with AMX and AVX-512 BF16, where a step took 0.6 to 0.8 of the time
of fp32 (docs/results/README.md); that fp16 takes about 17 times that time was reported from
elsewhere. On GPUs nothing was measured: from compute capability 8.0 on, bf16 is as fast as fp16 by
their data sheets.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from models import BinaryNetwork
from models.layers import NormBinarize
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


CARDS_WITH_BF16 = (8, 0)  # the compute capability from which a GPU multiplies in bf16
PROCESSORS_WITH_BF16 = ("avx512_bf16", "amx_bf16")  # ARM's bf16 has not been measured


def settle_precision(config: Config, device: torch.device, begun: str = "auto") -> Config:
    """``config`` with the number format that stands for ``train.precision=auto`` on ``device``.

    That is the format in which a run has ``begun``, and bf16 for a new run; but fp32 where the
    device of any process is slow in it. A line says which, and why, unless a run goes on as it
    began. Raises UserError for fp16 on a CPU, unless ``train.device=cpu`` is set beside it.
    """
    if config.train.precision != "auto":
        _check(config.train.precision, config, device)
        return config
    is_new = begun == "auto"
    wanted = "bf16" if is_new else begun
    is_slow = bool(processes.largest(bool(drawback(wanted, device))))
    chosen = "fp32" if is_slow else wanted
    if is_new or is_slow:
        reason = _reason(wanted, device, is_slow=is_slow)
        story = "" if is_new else f"it was trained in {wanted} so far, but "
        logger.info("train.precision=auto takes %s: %s%s", chosen, story, reason)
    return config.changed({"train.precision": chosen})


def settle_evaluation(config: Config, device: torch.device, overrides: Sequence[str]) -> Config:
    """``settle_precision`` for the config of a checkpoint: its number format is kept where
    ``device`` is fast in it, unless one of the ``overrides`` names another."""
    if any(override.startswith("train.precision=") for override in overrides):
        return settle_precision(config, device)
    auto = config.changed({"train.precision": "auto"})
    return settle_precision(auto, device, config.train.precision)


def drawback(precision: str, device: torch.device) -> str:
    """Why ``device`` is slow in ``precision``; nothing where it is not."""
    if precision == "fp16" and device.type == "cpu":
        return "on a CPU fp16 takes 17 times as long as fp32"
    if precision != "bf16":
        return ""
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= CARDS_WITH_BF16
        return "" if is_fast else "this GPU has no bf16 in hardware"
    has = torch.cpu.get_capabilities()
    is_fast = any(has.get(name) for name in PROCESSORS_WITH_BF16)
    return "" if is_fast else "this processor has neither AVX-512 BF16 nor AMX"


def _reason(wanted: str, device: torch.device, *, is_slow: bool) -> str:
    if is_slow:
        return drawback(wanted, device) or f"another process is slow in {wanted}"
    name = "GPU" if device.type == "cuda" else "processor"
    return f"this {name} has {wanted} in hardware, where it is faster than fp32"


def _check(precision: str, config: Config, device: torch.device) -> None:
    why_not = drawback(precision, device)
    if precision == "fp16" and why_not and config.train.device != "cpu":
        raise UserError(
            f"train.precision=fp16, but {why_not}; set train.precision=auto, or train.device=cpu "
            "too for fp16 all the same"
        )
    if why_not:
        logger.warning("train.precision=%s: %s", precision, why_not)


def to_device(model: BinaryNetwork, config: Config, device: torch.device) -> BinaryNetwork:
    """``model`` on ``device``, in channels_last and in the dtype in which its weights are kept."""
    model = model.to(device, weights_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_progress(model.progress)  # in the new dtype
    for module in model.modules():
        if isinstance(module, NormBinarize):
            module.sync = processes.size() > 1 and config.train.sync_bn != "false"
    return model


def weights_dtype(config: Config) -> torch.dtype:
    """The dtype in which weights are kept under ``train.precision``."""
    assert config.train.precision != "auto", "settle it first"
    return torch.float64 if config.train.precision == "fp64" else torch.float32


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of ``train.precision``."""
    dtype = AUTOCAST.get(config.train.precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
