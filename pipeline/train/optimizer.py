"""SGD as the config asks for it, its learning rate, and its form in a checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.run.config import Config
from pipeline.run.errors import UserError

NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm

Groups = list[dict[str, Any]]


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
        return _apex_sgd()(_groups(config, model), **options)
    fused = True if optim.impl == "torch_fused" else None  # None: torch's own choice
    sgd = torch.optim.SGD(_groups(config, model), fused=fused, **options)
    make_momentum(sgd)
    return sgd


def _groups(config: Config, model: nn.Module) -> Groups:
    """The parameters of ``model``: those of norms apart where these do not decay.

    Their decay is what Goyal et al. (2017) and He et al. ("Bag of tricks", CVPR 2019) leave out.
    """
    if config.optim.decay_norms:
        return [{"params": [*model.parameters()]}]
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    apart = {parameter for norm in norms for parameter in norm.parameters()}
    others = [parameter for parameter in model.parameters() if parameter not in apart]
    left = [parameter for parameter in model.parameters() if parameter in apart]
    return [{"params": others}, {"params": left, "weight_decay": 0.0}]


def state_of(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> dict[str, Any]:
    """The ``state_dict`` of ``optimizer``, as if ``parameters``, in this order, were one group.

    So a run can go on with other groups. The settings are those of the first of them.
    """
    order = list(parameters)
    state = {at: optimizer.state[each] for at, each in enumerate(order) if each in optimizer.state}
    settings = optimizer.state_dict()["param_groups"][0]
    return {"state": state, "param_groups": [settings | {"params": list(range(len(order)))}]}


def load_state(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], state: Mapping[str, Any]
) -> bool:
    """Take over the momentum in what ``state_of`` gave; the settings stay those of ``optimizer``.

    Returns whether it holds no momentum where there is some.
    """
    places = {parameter: at for at, parameter in enumerate(parameters)}
    groups = [dict(group) for group in optimizer.param_groups]
    order = [places[parameter] for group in groups for parameter in group["params"]]
    held = {at: state["state"][place] for at, place in enumerate(order) if place in state["state"]}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": held})
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)  # the learning rate stays the same tensor
    return make_momentum(optimizer)


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
