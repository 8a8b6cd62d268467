"""What a network holds and what it costs per image: docs/counting.md says how it is counted.

The network is run on noise, and what happens is counted: multiplications by their operands, and
memory by what autograd keeps. So a network of one's own is counted like those of this folder.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.layers import BinaryConv2d

REAL_BYTES = 4  # of a number that is not binary
BATCHES = (2, 3)  # what one has more than the other is that of one image


@dataclass(frozen=True)
class Count:
    """A layer, or a network as the sum of its layers; the last three are per image."""

    binary_parameters: int = 0  # ±1 whenever they are used
    real_parameters: int = 0
    packed_bytes: int = 0  # binary parameters in bits, all other numbers of a checkpoint in fp32
    binary_macs: int = 0  # multiply-accumulates of ±1 with ±1
    real_macs: int = 0  # all others
    activation_bytes: int = 0  # kept in training from the forward for the backward pass

    def __add__(self, other: "Count") -> "Count":
        return self._with(other, 1)

    def __sub__(self, other: "Count") -> "Count":
        return self._with(other, -1)

    def _with(self, other: "Count", sign: int) -> "Count":
        names = [field.name for field in fields(self)]
        return Count(*(getattr(self, name) + sign * getattr(other, name) for name in names))

    @property
    def bits(self) -> int:
        """The size of the parameters: 1 for a binary one, 32 for a real one."""
        return self.binary_parameters + 8 * REAL_BYTES * self.real_parameters

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs."""
        return self.binary_macs / 64 + self.real_macs


def count_layers(network: nn.Module, size: int) -> dict[str, Count]:
    """Each layer of ``network`` by its name, for images of ``size`` pixels a side.

    A layer is a module that holds numbers of its own, or in which something is multiplied or kept;
    "" is what the network does between its layers. They come in the order in which they are used.
    ``network`` lies on the CPU and stays as it is: a copy runs in training mode, under the caller's
    autocast. What that raises for images of this size is raised.
    """
    fewer, more = (_run(network, images, size) for images in BATCHES)
    layers = {name: used - fewer.get(name, Count()) for name, used in more.items()}
    between = layers.pop("", Count())
    for name, module in network.named_modules():
        layers[name] = layers.get(name, Count()) + held_by(module)
    layers[""] += between
    return {name: layer for name, layer in layers.items() if layer != Count()}


def held_by(module: nn.Module) -> Count:
    """The numbers that ``module`` itself holds, without those of the modules in it."""
    parameters = sum(each.numel() for each in module.parameters(recurse=False))
    own = [value for name, value in module.state_dict().items() if "." not in name]
    numbers = sum(value.numel() for value in own if value.is_floating_point())
    if isinstance(module, BinaryConv2d):
        return Count(parameters, 0, math.ceil(parameters / 8) + REAL_BYTES)  # and the scale
    return Count(0, parameters, numbers * REAL_BYTES)


def _run(network: nn.Module, images: int, size: int) -> dict[str, Count]:
    """What the forward pass of a training step on ``images`` images costs, by layer."""
    network = copy.deepcopy(network).train()
    batch = torch.randn(images, 3, size, size, dtype=next(network.parameters()).dtype)
    counter = _Counter(network)
    with torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda kept: kept), counter:
        network(batch.to(memory_format=torch.channels_last))
    return counter.layers


class _Counter(TorchDispatchMode):
    """As a context, it adds what ``network`` multiplies to ``layers``, and ``keep`` what it keeps.

    A storage that several layers keep is counted in the first of them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: dict[str, Count] = defaultdict(Count)
        self.running = [""]  # the names of the modules that are at work, the innermost last
        self.kept: set[StorageWeakRef] = set()
        for name, module in network.named_modules():
            if module is not network:
                module.register_forward_pre_hook(self._enter(name))
                module.register_forward_hook(self._leave)

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self.running.append(name)

    def _leave(self, *_: Any) -> None:
        self.running.pop()

    def keep(self, saved: Tensor) -> None:
        """Count ``saved``, which autograd keeps, and drop it: no backward pass follows."""
        storage = saved.untyped_storage()
        if (place := StorageWeakRef(storage)) not in self.kept:
            self.kept.add(place)
            self.layers[self.running[-1]] += Count(activation_bytes=storage.nbytes())

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        options = options or {}
        result = function(*arguments, **options)
        if count_flops := flop_registry.get(function.overloadpacket):
            macs = count_flops(*arguments, **options, out_val=result) // 2
            kind = "binary_macs" if _is_binary(arguments) else "real_macs"
            self.layers[self.running[-1]] += Count(**{kind: macs})
        return result


def _is_binary(operands: Sequence[Any]) -> bool:
    """Whether all tensors among ``operands`` hold ±1 alone; a bias, (C,), is no operand."""
    factors = [each for each in operands if isinstance(each, Tensor) and each.dim() > 1]
    return all(bool((each.abs() == 1).all()) for each in factors)
