"""A network of torch as a packed one, and back: the logits stay the same to the bit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels import binarize_weights
from models import ARCHS, BITS, BinaryNetwork, build_model
from models.frozen import freeze
from models.layers import RealConv2d
from models.rprelu import NormPReLU
from pipeline.export.packed import About, Packed, layers, pack_signs
from pipeline.export.program import Array, Step
from pipeline.export.trace import trace
from pipeline.run.errors import UserError

STATISTICS = ("weight", "bias", "running_mean", "running_var")  # the rows of <layer>.norm
LEARNED = {"prelu": ("slope", "after"), "shift": ("offset",)}  # the rows of <layer>.<op>


@torch.no_grad()
def pack(network: BinaryNetwork, about: About) -> Packed:
    """``network`` with the real weights in float32, as ``about`` describes it.

    Raises UserError where it does what no step stands for, or a layer has no weight but 0.
    """
    steps = trace(network)
    tensors = _binary(network) | _real(network, steps)
    return Packed(replace(about, real="float32"), steps, tensors)


def _binary(network: BinaryNetwork) -> dict[str, Array]:
    """The bits and scales of the binary convolutions."""
    convs = network.binary_convs()
    if not convs:
        return {}
    first = next(iter(convs.values())).binarize
    weights = [conv.signed() for conv in convs.values()]
    signs, scales = binarize_weights(weights, first.params, first.estimator)
    found: dict[str, Array] = {}
    for name, sign, scale in zip(convs, signs, scales, strict=True):
        if not scale > 0:
            raise UserError(f"{name} has no weight but 0, so no scale; train the network again")
        found |= {f"{name}.bits": pack_signs(sign.numpy()), f"{name}.scale": scale.numpy()}
    return found


def _real(network: BinaryNetwork, steps: tuple[Step, ...]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for step in steps:
        if step.op == "norm":
            found[f"{step.layer}.norm"] = _norm(network.get_submodule(step.layer))
        elif step.op in LEARNED:
            layer = network.get_submodule(step.layer)
            found[f"{step.layer}.{step.op}"] = _rows(layer, LEARNED[step.op])
        elif step.op in ("conv", "linear") and not step.is_binary:
            layer = network.get_submodule(step.layer)
            parameters: dict[str, Tensor] = dict(layer.named_parameters())
            if isinstance(layer, RealConv2d):
                parameters = {"weight": layer.convolved()}
            found |= {f"{step.layer}.{name}": _array(each) for name, each in parameters.items()}
    return found


def _norm(norm: nn.Module) -> Array:
    """The rows of a norm; what RPReLU shifts by before its slope is part of the bias."""
    rows = _rows(norm, STATISTICS)
    if isinstance(norm, NormPReLU):
        rows[1] = (norm.bias + norm.before).numpy()
    return rows


def _rows(layer: nn.Module, names: Sequence[str]) -> Array:
    return torch.stack([getattr(layer, name).float() for name in names]).numpy()


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.float().numpy())


def unpack(packed: Packed) -> BinaryNetwork:
    """The network of ``build_model`` with the weights of ``packed``, in evaluation.

    Raises UserError where it is a network that this code does not have, or another one of its name.
    """
    about = packed.about
    if about.arch not in ARCHS or about.bits not in BITS:
        raise UserError(
            f"the packed network is {about.arch[:40]!r} {about.bits[:40]!r}, which is not in "
            "models/; take the code that it was exported with"
        )
    network = build_model(about.arch, about.bits, packed.num_classes)
    try:
        freeze(network, _frozen(packed))
        network.load_state_dict(_state(packed, network))
    except (RuntimeError, KeyError, ValueError):
        raise _other(about) from None
    if trace(network) != packed.steps:
        raise _other(about)
    return network.eval()


def _other(about: About) -> UserError:
    return UserError(
        f"the packed network is another {about.arch} {about.bits} than that of models/; take the "
        f"code that it was exported with{about.commit and f', {about.commit[:40]}'}"
    )


def _frozen(packed: Packed) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for step in packed.steps:
        if step.is_binary:
            signs = torch.from_numpy(packed.signs(step)).float()
            scale = torch.tensor(packed.tensors[f"{step.layer}.scale"])
            found[step.layer] = signs, scale
    return found


def _state(packed: Packed, network: nn.Module) -> dict[str, Any]:
    """The ``state_dict`` of a network that is frozen already."""
    state: dict[str, Any] = dict(network.state_dict())
    for name in layers(packed.steps, "norm"):
        rows = torch.tensor(packed.tensors[f"{name}.norm"])
        state |= {f"{name}.{key}": row for key, row in zip(STATISTICS, rows, strict=True)}
    for op, keys in LEARNED.items():
        for name in layers(packed.steps, op):
            rows = torch.tensor(packed.tensors[f"{name}.{op}"])
            state |= {f"{name}.{key}": row for key, row in zip(keys, rows, strict=True)}
    for key in packed.tensors:
        name, _, kind = key.rpartition(".")
        if kind == "weight":
            state[key] = torch.from_numpy(packed.weight(name))
        elif kind == "bias":
            state[key] = torch.from_numpy(packed.bias(name))
    return state
