"""SGD as the config asks for it, and its learning rate."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.run.config import Config
from pipeline.run.errors import UserError


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over all parameters of ``model``, as ``optim`` of the config says.

    Raises UserError for apex where apex is not installed.
    """
    optim = config.optim
    options: dict[str, Any] = {
        "lr": _first_rate(config, next(model.parameters()).device),
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
    }
    if optim.impl == "apex":
        return _apex_sgd()(model.parameters(), **options)
    fused = True if optim.impl == "torch_fused" else None  # None: torch's own choice
    sgd = torch.optim.SGD(model.parameters(), fused=fused, **options)
    make_momentum(sgd)
    return sgd


def make_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Give the parameters that have no momentum, but should, one of zero; whether there are any.

    The fused SGD leaves its buffers uninitialised if loss scaling skips the first step.
    """
    missing = [
        parameter
        for group in optimizer.param_groups
        if group["momentum"]
        for parameter in group["params"]
        if optimizer.state[parameter].get("momentum_buffer") is None
    ]
    for parameter in missing:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return bool(missing)


def _first_rate(config: Config, device: torch.device) -> float | Tensor:
    # The fused SGD reads the rate from an fp32 tensor on its device, where a captured step follows
    # it. The other ones would read such a tensor on the host.
    if config.optim.impl != "torch_fused" or config.train.precision == "fp64":
        return config.optim.lr
    return torch.tensor(config.optim.lr, dtype=torch.float32, device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _apex_sgd() -> Any:
    try:
        from apex.optimizers import FusedSGD
    except ImportError:
        raise UserError(
            "optim.impl=apex, but apex.optimizers cannot be imported; set optim.impl=torch_fused, "
            "or build NVIDIA's apex from source"
        ) from None
    return FusedSGD
