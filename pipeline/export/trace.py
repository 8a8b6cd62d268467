"""The steps of a network, read from its ``forward`` as torch.fx traces it.

So a network of one's own is exported like those of models/, as long as its ``forward`` is made of
their layers and of what ``_FUNCTIONS`` lists, and takes the same way for every image.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from models import BinaryNetwork
from models.frozen import FrozenConv2d
from models.layers import (
    BatchNorm,
    Binarize,
    BinaryConv2d,
    NormBinarize,
    NormPoolBinarize,
    RealConv2d,
    global_pool,
)
from models.resnet_cifar import PadShortcut
from models.rprelu import NormPReLU, RSign
from pipeline.export.program import Step
from pipeline.run.errors import UserError

BINARY = (BinaryConv2d, FrozenConv2d)


def trace(network: BinaryNetwork) -> tuple[Step, ...]:
    """The steps of ``network`` in evaluation.

    Raises UserError where it does something that no step stands for.
    """
    try:
        graph = _Tracer().trace(network)
        return _Steps(network, graph).steps
    except (fx.proxy.TraceError, _Unknown) as error:
        raise UserError(
            f"model.arch={network.arch} cannot be exported: {error}; write its forward with the "
            "layers of models/layers.py"
        ) from None


class _Unknown(Exception):
    """What no step stands for."""


class _Tracer(fx.Tracer):
    """Records each layer of ours as one call, and splits what gives a pair in two."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(global_pool,))

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if isinstance(m, nn.Identity):
            return args[0]
        record = self._record
        if isinstance(m, BINARY):
            z = record(m, args)
            return z, z  # as its scale, z says which layer it is of
        if isinstance(m, RealConv2d):
            return record(m, args), None
        if isinstance(m, NormPoolBinarize):
            x = F.max_pool2d(record(m, args[:1]), 3, stride=2, padding=1)
            return x, args[1](x)
        if isinstance(m, NormBinarize) and not isinstance(m, BatchNorm):
            y = record(m, args, kwargs)
            if isinstance(m, NormPReLU):
                y = self._call(_prelu, m, y)
            return y, m.binarize(y)
        if isinstance(m, RSign):
            return self.create_proxy("call_function", _sign, (self._call(_shift, m, args[0]),), {})
        if isinstance(m, BatchNorm | Binarize | PadShortcut):
            return record(m, args[:1])
        return super().call_module(m, forward, args, kwargs)

    def _call(self, what: Callable[..., Any], m: nn.Module, x: Any) -> Any:
        """A part of what the layer ``m`` does."""
        options = {"layer": self.path_of_module(m)}
        return self.create_proxy("call_function", what, (x,), options)

    def _record(self, m: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs or {})


class _Steps:
    """``steps``: those of a traced ``graph``."""

    def __init__(self, network: BinaryNetwork, graph: fx.Graph) -> None:
        self.network = network
        self.steps: tuple[Step, ...] = ()
        self.values: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = 0
            elif node.op != "output":
                step = self._step(node)
                self.steps += (step,)
                self.values[node] = len(self.steps)

    def _step(self, node: fx.Node) -> Step:
        if node.op == "call_module":
            return self._layer(node, str(node.target))
        make = _FUNCTIONS.get(node.target)
        if make is None:
            raise _Unknown(f"{node.op} {node.target} is no step")
        op, options = make(node)
        reads = [each for each in node.args if isinstance(each, fx.Node)]
        return Step(op, self._values(*reads), options)

    def _values(self, *nodes: Any) -> tuple[int, ...]:
        return tuple(self.values[node] for node in nodes)

    def _layer(self, node: fx.Node, name: str) -> Step:
        layer, x = self.network.get_submodule(name), self._values(node.args[0])
        if isinstance(layer, nn.Conv2d):
            return Step("conv", x, _conv(name, layer))
        if isinstance(layer, NormBinarize):
            return self._norm(node, name, layer)
        if isinstance(layer, nn.Linear):
            return Step("linear", x, {"layer": name})
        if isinstance(layer, Binarize):
            return Step("sign", x)
        if isinstance(layer, PadShortcut):
            return Step("skip", x, {"channels": layer.padding})
        if isinstance(layer, nn.ReLU):
            return Step("relu", x)
        if isinstance(layer, nn.AvgPool2d):
            return Step("avg_pool", x, _means(name, layer))
        raise _Unknown(f"no step stands for {name}, a {type(layer).__name__}")

    def _norm(self, node: fx.Node, name: str, layer: NormBinarize) -> Step:
        z, scale, residual = (*node.args, None, None)[:3]
        residual = node.kwargs.get("residual", residual)
        scale = node.kwargs.get("scale", scale)
        options = {"layer": name, "relu": _has_relu(layer), "eps": layer.eps}
        if isinstance(scale, fx.Node):
            options["scale"] = self.values[scale]
        reads = [z] if residual is None else [z, residual]
        return Step("norm", self._values(*reads), options)


def _has_relu(layer: NormBinarize) -> bool:
    if isinstance(layer, NormPoolBinarize):
        return layer.relu
    return not isinstance(layer, BatchNorm | NormPReLU)


def _conv(name: str, layer: nn.Conv2d) -> dict[str, Any]:
    """The options of a convolution; raises _Unknown for one that no step describes."""
    sizes = layer.stride, layer.padding, layer.dilation  # a padding that is a word is no step's
    if layer.padding_mode != "zeros" or any(len({*each}) > 1 for each in sizes):
        raise _Unknown(f"{name} is uneven, or not padded by zeros")
    options: dict[str, Any] = {"layer": name, "stride": sizes[0][0], "padding": sizes[1][0]}
    if layer.bias is not None:
        options["bias"] = True
    if isinstance(layer, BINARY):
        return options | {"channels": layer.in_channels}
    further = {"groups": layer.groups, "dilation": sizes[2][0]}
    return options | {option: value for option, value in further.items() if value > 1}


def _means(name: str, layer: nn.AvgPool2d) -> dict[str, Any]:
    """The options of an average pooling; raises _Unknown for one that no step describes."""
    size, is_plain = layer.kernel_size, layer.padding == 0 and layer.divisor_override is None
    if not (is_plain and isinstance(size, int) and layer.stride == size):
        raise _Unknown(f"{name} has windows that are uneven, padded or not beside each other")
    return {"size": size, "ceil": layer.ceil_mode}


def _pool(node: fx.Node) -> tuple[str, dict[str, Any]]:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    size = given["kernel_size"]
    stride, padding = given.get("stride") or size, given.get("padding", 0)
    is_plain = given.get("dilation", 1) == 1 and not given.get("ceil_mode")
    if not (is_plain and type(size) is type(stride) is type(padding) is int):
        raise _Unknown("a max-pooling with uneven windows")
    return "max_pool", {"size": size, "stride": stride, "padding": padding}


def _plain(op: str) -> Callable[[fx.Node], tuple[str, dict[str, Any]]]:
    return lambda node: (op, {})


def _prelu(x: Any, layer: str) -> Any:
    """Stands for the second half of ``NormPReLU``."""


def _shift(x: Any, layer: str) -> Any:
    """Stands for the first half of ``RSign``."""


def _sign(x: Any) -> Any:
    """Stands for the second half of ``RSign``."""


# What a forward may call beside layers.
_FUNCTIONS: dict[Any, Callable[[fx.Node], tuple[str, dict[str, Any]]]] = {
    _prelu: lambda node: ("prelu", dict(node.kwargs)),
    _shift: lambda node: ("shift", dict(node.kwargs)),
    _sign: _plain("sign"),
    F.relu: _plain("relu"),
    torch.relu: _plain("relu"),
    operator.add: _plain("add"),
    global_pool: _plain("mean"),
    F.max_pool2d: _pool,
    "flatten": _plain("flatten"),
}
