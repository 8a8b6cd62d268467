"""An OpenVINO graph of a packed network, whose binary convolutions its CPU plugin runs on bits.

No converter makes a BinaryConvolution, so the graph is built by hand. It computes sums of ±1 from
weights of type u1, the lowest bit of a byte first, and from what a FakeQuantize of two levels makes
of its input. That one must have scalar limits and give 0 and 1: per channel, or with -1 and 1, the
plugin computes something else without a word, and other channels than a multiple of 8 it refuses.
Its threshold is the largest negative normal number, so that 0 and -0 become +1. Padding adds
nothing to a sum. Shapes are fixed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset1 as ops

from pipeline.export.description import KEY, to_text
from pipeline.export.output import Files, Options
from pipeline.export.packed import Packed
from pipeline.export.program import Array, Step, shapes
from pipeline.run.errors import UserError

Node = Any  # of openvino, whose types are generated

THRESHOLD = np.float32(-1.17549435e-38)  # x > this is x >= 0, but for subnormal numbers


def files(packed: Packed, options: Options) -> Files:
    """The .xml file and the .bin file with its constants."""
    model = build(packed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        try:
            openvino.serialize(model, path)
        except RuntimeError:  # it says nothing of what fails
            raise UserError(
                f"no temporary file can be written to {folder}; make room or set TMPDIR to another "
                "folder"
            ) from None
        # A graph without its constants would be found before them.
        return {end: path.with_suffix(end).read_bytes() for end in (".bin", ".xml")}


def build(packed: Packed) -> openvino.Model:
    """The graph, from "images" (1, 3, size, size) to "logits" (1, classes), both float32."""
    graph = _Graph(packed)
    logits = graph.values[-1]
    logits.output(0).set_names({"logits"})
    model = openvino.Model([logits], [graph.values[0]], packed.about.arch)
    model.set_rt_info(to_text(packed.about), KEY)
    return model


class _Graph:
    """``values``: the node of each value of the steps."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        size = packed.about.images.size
        self.shapes = shapes(packed.steps, packed.tensors, size, size)
        images = ops.parameter([1, 3, size, size], np.float32, name="images")
        images.output(0).set_names({"images"})
        self.values: list[Node] = [images]
        for step in packed.steps:
            self.values.append(_MAKERS[step.op](self, step))

    def read(self, step: Step, place: int = 0) -> Node:
        return self.values[step.inputs[place]]

    def made_by(self, value: int) -> str:
        """The kind of the step that gives a value."""
        return self.packed.steps[value - 1].op if value else ""

    def weight(self, layer: str) -> Node:
        """The weights of a real layer, in float32 once the graph is loaded."""
        stored = self.packed.tensors[f"{layer}.weight"]
        weight = ops.constant(stored)
        if stored.dtype != np.float32:
            weight = ops.convert(weight, "f32")
        if stored.dtype == np.int8:
            unit = self.packed.tensors[f"{layer}.unit"].reshape(-1, *[1] * (stored.ndim - 1))
            weight = ops.multiply(weight, ops.constant(unit))
        return weight


def _constant(value: Any, dtype: Any = np.float32) -> Node:
    return ops.constant(np.asarray(value, dtype))


def _per_channel(values: Array) -> Node:
    return _constant(values.reshape(1, -1, 1, 1))


def _bits(signs: Array) -> Node:
    """The constant of type u1 of weights (O, I, kH, kW) of ±1, row by row."""
    octets = np.packbits(signs.reshape(-1) > 0, bitorder="little")
    tensor = openvino.Tensor(openvino.Type.u1, openvino.Shape(signs.shape))
    tensor.data[:] = octets.reshape(tensor.data.shape)
    return openvino.op.Constant(tensor)


def _conv(graph: _Graph, step: Step) -> Node:
    pads = [step["padding"]] * 2
    move = [step["stride"]] * 2, pads, pads, [step.dilation] * 2
    x = graph.read(step)
    if not step.is_binary:
        z = _real(x, graph.weight(step.layer), step.groups, move)
        return ops.add(z, _per_channel(graph.packed.bias(step.layer))) if step.has_bias else z
    signs = graph.packed.signs(step)
    if step["channels"] % 8:
        raise UserError(
            f"--to openvino: {step.layer} has {step['channels']} input channels, and bits take a "
            "multiple of 8; export with --to onnx"
        )
    if graph.made_by(step.inputs[0]) != "sign":  # 1w32a
        return ops.convolution(x, ops.convert(ops.constant(signs), "f32"), *move)
    return ops.binary_convolution(
        _levels(x), _bits(signs), *move, mode="xnor-popcount", pad_value=0.0
    )


def _real(x: Node, weight: Node, groups: int, move: tuple[list[int], ...]) -> Node:
    if groups == 1:
        return ops.convolution(x, weight, *move)
    count, *shape = weight.shape
    split = _constant([groups, count // groups, *shape], np.int64)
    return ops.group_convolution(x, ops.reshape(weight, split, False), *move)


def _levels(sign: Node) -> Node:
    """0 and 1 for the signs -1 and +1, made of what the signs are made of."""
    x = sign.input_value(0).get_node().input_value(0)
    return ops.fake_quantize(x, *map(_constant, (THRESHOLD, THRESHOLD, 0, 1)), levels=2)


def _sign(graph: _Graph, step: Step) -> Node:
    above = ops.greater_equal(graph.read(step), _constant(0))
    return ops.select(above, _constant(1), _constant(-1))


def _norm(graph: _Graph, step: Step) -> Node:
    shape = (1, -1, *[1] * (len(graph.shapes[step.inputs[0]]) - 1))
    mean, slope, bias = (ops.constant(each.reshape(shape)) for each in graph.packed.folded(step))
    u = ops.relu(graph.read(step)) if step["relu"] else graph.read(step)
    y = ops.add(ops.multiply(ops.subtract(u, mean), slope), bias)
    return ops.add(y, graph.read(step, 1)) if len(step.inputs) > 1 else y


def _prelu(graph: _Graph, step: Step) -> Node:
    slope, shift = graph.packed.prelu(step)
    return ops.add(ops.prelu(graph.read(step), _constant(slope)), _per_channel(shift))


def _shift(graph: _Graph, step: Step) -> Node:
    return ops.add(graph.read(step), _per_channel(graph.packed.offset(step)))


def _max_pool(graph: _Graph, step: Step) -> Node:
    pads, size = [step["padding"]] * 2, [step["size"]] * 2
    return ops.max_pool(graph.read(step), [step["stride"]] * 2, pads, pads, size)


def _avg_pool(graph: _Graph, step: Step) -> Node:
    size, rounding = [step["size"]] * 2, "ceil" if step["ceil"] else "floor"
    return ops.avg_pool(graph.read(step), size, [0, 0], [0, 0], size, True, rounding)


def _skip(graph: _Graph, step: Step) -> Node:
    begin, end, strides = (_constant(each, np.int64) for each in ([0] * 4, [0] * 4, [1, 1, 2, 2]))
    masks = [1, 1, 1, 1], [1, 1, 1, 1]  # from the first to the last
    chosen = ops.strided_slice(graph.read(step), begin, end, strides, *masks)
    around = _constant([0, step["channels"], 0, 0], np.int64)
    return ops.pad(chosen, around, around, "constant", _constant(0))


def _mean(graph: _Graph, step: Step) -> Node:
    return ops.reduce_mean(graph.read(step), _constant([2, 3], np.int64))


def _flatten(graph: _Graph, step: Step) -> Node:
    return ops.reshape(graph.read(step), _constant([1, -1], np.int64), False)


def _linear(graph: _Graph, step: Step) -> Node:
    product = ops.matmul(graph.read(step), graph.weight(step.layer), False, True)
    return ops.add(product, _constant(graph.packed.bias(step.layer)[None]))


_MAKERS: dict[str, Callable[[_Graph, Step], Node]] = {
    "conv": _conv, "norm": _norm, "prelu": _prelu, "shift": _shift, "sign": _sign,
    "max_pool": _max_pool, "avg_pool": _avg_pool, "skip": _skip,
    "relu": lambda graph, step: ops.relu(graph.read(step)),
    "add": lambda graph, step: ops.add(graph.read(step), graph.read(step, 1)),
    "mean": _mean, "flatten": _flatten, "linear": _linear,
}  # fmt: skip
