"""An ONNX graph of a packed network, of plain operators, for images of any number and size.

sign is GreaterOrEqual and Where, so that sign(0) is +1: ONNX's Sign gives 0. Binary weights are
stored as bits, which a table of 256 x 8 signs expands when a runtime loads the graph and folds what
is constant. Batch norms are a subtraction, a product and a sum, in the order of evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.description import KEY, to_text
from pipeline.export.output import Files, Options
from pipeline.export.packed import Packed
from pipeline.export.program import Array, Step, shapes
from pipeline.run.errors import UserError

OLDEST_OPSET = 13
OPSET = 17  # that the runtimes of the last years all know
PRODUCER = "reste-trainer"


def files(packed: Packed, options: Options) -> Files:
    """The .onnx file; raises UserError where ``options.opset`` is none that can be written."""
    newest = onnx.defs.onnx_opset_version()
    opset = options.opset or OPSET
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(
            f"--opset={opset} cannot be written; take one between {OLDEST_OPSET} and {newest}, "
            f"such as --opset={OPSET}"
        )
    return {".onnx": build(packed, opset, as_bits=options.weights == "bits").SerializeToString()}


def build(packed: Packed, opset: int, *, as_bits: bool) -> onnx.ModelProto:
    """The graph, from "images" (N, 3, H, W) to "logits" (N, classes), both float32."""
    graph = _Graph(packed, as_bits)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph.proto(),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name=PRODUCER,
        doc_string=f"{packed.about.arch} {packed.about.bits}",
    )
    helper.set_model_props(model, {KEY: to_text(packed.about)})
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Collects nodes and constants; a step's value is named after its number."""

    def __init__(self, packed: Packed, as_bits: bool) -> None:
        self.packed, self.as_bits = packed, as_bits
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        size = packed.about.images.size
        self.shapes = shapes(packed.steps, packed.tensors, size, size)
        self.names = ["images"]
        for step in packed.steps:
            inputs = [self.names[each] for each in step.inputs]
            self.names.append(_MAKERS[step.op](self, step, inputs))
        self.nodes[-1].output[0] = "logits"

    def proto(self) -> onnx.GraphProto:
        value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
        images = value("images", kind, ["batch", 3, "height", "width"])
        logits = value("logits", kind, ["batch", self.packed.num_classes])
        held = [numpy_helper.from_array(each, name) for name, each in self.constants.items()]
        return helper.make_graph(self.nodes, self.packed.about.arch, [images], [logits], held)

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; returns the name of what it gives."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def weight(self, layer: str) -> str:
        """The weights of a real layer, in float32 once the graph is loaded."""
        name, stored = f"{layer}.weight", self.packed.tensors[f"{layer}.weight"]
        if stored.dtype == np.float32 or not self.as_bits:
            return self.constant(name, self.packed.weight(layer))
        self.constants[name] = stored
        weight = self.add("Cast", [name], to=TensorProto.FLOAT)
        if stored.dtype == np.int8:
            unit = self.packed.tensors[f"{layer}.unit"].reshape(-1, *[1] * (stored.ndim - 1))
            weight = self.add("Mul", [weight, self.constant(f"{layer}.unit", unit)])
        return weight

    def bias(self, step: Step) -> list[str]:
        """The bias of a real layer, if it has one."""
        name = f"{step.layer}.bias"
        return [self.constant(name, self.packed.bias(step.layer))] if step.has_bias else []

    def signs(self, step: Step) -> str:
        """The weights of a binary convolution, (O, I, kH, kW) of ±1 in float32."""
        if not self.as_bits:
            return self.constant(f"{step.layer}.weight", self.packed.signs(step))
        name = f"{step.layer}.bits"
        self.constants[name] = bits = self.packed.tensors[name]
        octets = self.add("Cast", [name], to=TensorProto.INT32)
        spread = self.add("Gather", [self.constant("table", _table()), octets], axis=0)
        laid_out = self.constant(f"{name}.shape", [*bits.shape[:3], -1], np.int64)
        rows = self.add("Reshape", [spread, laid_out])
        if step["channels"] % 8:
            ends = [[0], [step["channels"]], [3]]
            words = zip(("first", "end", "axis"), ends, strict=True)
            given = [self.constant(f"{name}.{word}", end, np.int64) for word, end in words]
            rows = self.add("Slice", [rows, *given])
        return self.add("Transpose", [rows], perm=[0, 3, 1, 2])


def _table() -> Array:
    """The 8 signs of each byte, (256, 8), the lowest bit first."""
    octets = np.arange(256, dtype=np.uint8)[:, None]
    return np.unpackbits(octets, axis=1, bitorder="little") * np.float32(2) - 1


def _conv(graph: _Graph, step: Step, inputs: list[str]) -> str:
    weight = graph.signs(step) if step.is_binary else graph.weight(step.layer)
    options: dict[str, Any] = {"strides": [step["stride"]] * 2, "pads": [step["padding"]] * 4}
    if step.groups > 1 or step.dilation > 1:
        options |= {"group": step.groups, "dilations": [step.dilation] * 2}
    return graph.add("Conv", [*inputs, weight, *graph.bias(step)], **options)


def _norm(graph: _Graph, step: Step, inputs: list[str]) -> str:
    is_map = len(graph.shapes[step.inputs[0]]) == 3
    words = ("mean", "slope", "bias")
    mean, slope, bias = (
        graph.constant(f"{step.layer}.{word}", each.reshape(-1, *[1] * (2 * is_map)))
        for word, each in zip(words, graph.packed.folded(step), strict=True)
    )
    u = graph.add("Relu", inputs[:1]) if step["relu"] else inputs[0]
    y = graph.add("Add", [graph.add("Mul", [graph.add("Sub", [u, mean]), slope]), bias])
    return graph.add("Add", [y, inputs[1]]) if len(inputs) > 1 else y


def _prelu(graph: _Graph, step: Step, inputs: list[str]) -> str:
    slope, shift = (
        graph.constant(f"{step.layer}.{word}", each.reshape(-1, 1, 1))
        for word, each in zip(("leak", "shift"), graph.packed.prelu(step), strict=True)
    )
    return graph.add("Add", [graph.add("PRelu", [*inputs, slope]), shift])


def _shift(graph: _Graph, step: Step, inputs: list[str]) -> str:
    offset = graph.packed.offset(step).reshape(-1, 1, 1)
    return graph.add("Add", [*inputs, graph.constant(f"{step.layer}.offset", offset)])


def _sign(graph: _Graph, step: Step, inputs: list[str]) -> str:
    zero, one, minus = (
        graph.constant(name, value) for name, value in (("zero", 0), ("one", 1), ("minus", -1))
    )
    return graph.add("Where", [graph.add("GreaterOrEqual", [*inputs, zero]), one, minus])


def _max_pool(graph: _Graph, step: Step, inputs: list[str]) -> str:
    size, strides, pads = [step["size"]] * 2, [step["stride"]] * 2, [step["padding"]] * 4
    return graph.add("MaxPool", inputs, kernel_shape=size, strides=strides, pads=pads)


def _avg_pool(graph: _Graph, step: Step, inputs: list[str]) -> str:
    size = [step["size"]] * 2
    options = {"kernel_shape": size, "strides": size, "ceil_mode": int(step["ceil"])}
    return graph.add("AveragePool", inputs, **options)


def _skip(graph: _Graph, step: Step, inputs: list[str]) -> str:
    whole = {"first": [0, 0], "end": [2**31] * 2, "axes": [2, 3], "step": [2, 2]}
    given = [graph.constant(f"skip.{word}", each, np.int64) for word, each in whole.items()]
    around = [0, step["channels"], 0, 0] * 2
    pads = graph.constant(f"skip.{step['channels']}", around, np.int64)
    return graph.add("Pad", [graph.add("Slice", [*inputs, *given]), pads])


def _mean(graph: _Graph, step: Step, inputs: list[str]) -> str:
    return graph.add("Flatten", [graph.add("GlobalAveragePool", inputs)])


def _linear(graph: _Graph, step: Step, inputs: list[str]) -> str:
    return graph.add("Gemm", [*inputs, graph.weight(step.layer), *graph.bias(step)], transB=1)


def _plain(op: str) -> Callable[[_Graph, Step, list[str]], str]:
    return lambda graph, step, inputs: graph.add(op, inputs)


_MAKERS: dict[str, Callable[[_Graph, Step, list[str]], str]] = {
    "conv": _conv, "norm": _norm, "prelu": _prelu, "shift": _shift, "sign": _sign,
    "relu": _plain("Relu"), "add": _plain("Add"), "max_pool": _max_pool, "avg_pool": _avg_pool,
    "skip": _skip, "mean": _mean, "flatten": _plain("Flatten"), "linear": _linear,
}  # fmt: skip
