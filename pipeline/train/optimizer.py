"""The optimizer of a training, its learning rate, and its form in a checkpoint."""

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models import BinaryNetwork
from models.rprelu import NormPReLU, RSign
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.train.bop import Bop, drop_latent_weights

KINDS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "bop": Bop,
}
LEARNED = RSign, NormPReLU  # which have parameters that never decay
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm

Settings = dict[str, Any]


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters of ``model``, as ``optim`` of the config says: SGD with
    momentum, Adam (Kingma & Ba, ICLR 2015), AdamW (Loshchilov & Hutter, ICLR 2019), or Bop for
    binary weights, which become ±1, with Adam for the others.

    Raises UserError for apex where apex is not installed.
    """
    groups = _groups(config, model)
    device = next(model.parameters()).device
    settings = _settings(config, device)
    if config.optim.impl == "apex":
        return _apex_sgd()(groups, **settings)
    optimizer = _uncompiled(KINDS[config.optim.name])(groups, **settings)
    rate = _first_rate(config, device)
    for group in optimizer.param_groups:
        group["lr"] = rate  # only now: Adam compares its first one on the host
    make_moments(optimizer)
    return optimizer


def _uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """``kind`` without what keeps torch.compile out of its methods, which nothing here compiles:
    for that alone, torch would import its compiler, which takes seconds."""
    names = "add_param_group", "load_state_dict", "state_dict", "zero_grad"
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


def _settings(config: Config, device: torch.device) -> Settings:
    optim = config.optim
    settings: Settings = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    is_fused = optim.impl == "torch_fused"
    if optim.impl != "apex":
        settings["fused"] = is_fused or None  # None: torch's own choice
    if optim.name == "sgd":
        return settings | {"momentum": optim.momentum}
    if is_fused and device.type == "cuda":
        # A capture of Adam must be announced, and torch warns of the steps that come before it.
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        settings["capturable"] = True
    return settings | {"betas": (optim.beta1, optim.beta2)}


def _groups(config: Config, model: nn.Module) -> list[Settings]:
    """The parameters of ``model``: those of norms apart where these do not decay, with those
    that never do, and binary weights where Bop takes them.

    The decay of norms is what Goyal et al. (2017) and He et al. ("Bag of tricks", CVPR 2019) leave
    out.
    """
    optim = config.optim
    binary = set[Tensor]()
    if optim.name == "bop" and isinstance(model, BinaryNetwork):
        binary = {*drop_latent_weights(model)}
    still = {each for module in model.modules() if isinstance(module, LEARNED)
             for each in module.undecayed()}  # fmt: skip
    if not optim.decay_norms:
        norms = [module for module in model.modules() if isinstance(module, NORMS)]
        still |= {parameter for norm in norms for parameter in norm.parameters()}
    every = [*model.parameters()]
    groups: list[Settings] = [
        {"params": [each for each in every if each not in binary | still]},
        {"params": [each for each in every if each in still], "weight_decay": 0.0},
        {
            "params": [each for each in every if each in binary],
            "gamma": optim.bop_gamma / (optim.lr or 1),
            "threshold": optim.bop_threshold,
        },
    ]
    return [group for group in groups if group["params"]]


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
    """Take over the moments in what ``state_of`` gave; the settings stay those of ``optimizer``.

    Returns whether a parameter has moments that are not there, and so begin anew.
    """
    places = {parameter: at for at, parameter in enumerate(parameters)}
    groups = [dict(group) for group in optimizer.param_groups]
    order = [places[parameter] for group in groups for parameter in group["params"]]
    held = {at: state["state"][place] for at, place in enumerate(order) if place in state["state"]}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": held})
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)  # the learning rate stays the same tensor
    return make_moments(optimizer)


def make_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Give the parameters that lack their moments such as are zero; whether there are any.

    Torch makes them in the first step: too late for the memory that is left for a batch to be
    known. And the fused SGD leaves them uninitialised if loss scaling skips that step.
    """
    made = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            first = _first_moments(parameter, group)
            if any(optimizer.state[parameter].get(name) is None for name in first):
                optimizer.state[parameter].update(first)
                made = True
    return made


def _first_moments(parameter: Tensor, group: Settings) -> dict[str, Tensor]:
    """What is kept of ``parameter``, one of ``group``, as it is before the first step."""
    if "threshold" in group:
        return {"exp_avg": torch.zeros_like(parameter)}
    if "betas" not in group:
        return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}
    place = parameter.device if group["fused"] else torch.device("cpu")
    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), dtype=torch.float32, device=place), **moments}


def _first_rate(config: Config, device: torch.device) -> float | Tensor:
    # A fused step reads the rate from an fp32 tensor on its device, where a captured one follows
    # it. The others would read such a tensor on the host.
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
