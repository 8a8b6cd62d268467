"""A packed network whose real weights take fewer bytes than float32.

What stands in front of a sign flips it where it is rounded, and one flipped sign moves all logits.
The classifier stands in front of none.
"""

from dataclasses import replace

import numpy as np

from pipeline.export.packed import Packed
from pipeline.export.program import Array
from pipeline.run.errors import UserError

MEASURED = ("float16", "int8")  # kinds that change predictions: only with their accuracy
LEVELS = 127  # of an int8 weight, on both sides of 0


def shrink(packed: Packed, real: str) -> Packed:
    """``packed`` with its real weights as ``real`` says: float32, classifier16 (the classifier in
    float16), float16, or int8 with a factor for each row. Batch norms stay float32.

    Raises UserError where they are stored in fewer bytes already, or are too large for float16.
    """
    if packed.about.real == real:
        return packed
    if packed.about.real != "float32":
        raise UserError(
            f"--real={real}: the weights are {packed.about.real} already; export the checkpoint "
            "that they come from"
        )
    last = packed.steps[-1].layer
    tensors: dict[str, Array] = {}
    for name, each in packed.tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias") or (real == "classifier16" and layer != last):
            tensors[name] = each
        elif real == "int8":
            tensors |= _int8(layer, each) if kind == "weight" else {name: each}
        else:
            tensors[name] = _float16(name, each)
    return Packed(replace(packed.about, real=real), packed.steps, tensors)


def _float16(name: str, weight: Array) -> Array:
    if np.abs(weight).max() > np.finfo(np.float16).max:
        raise UserError(f"{name} is too large for float16; export with --real=float32")
    return weight.astype(np.float16)


def _int8(layer: str, weight: Array) -> dict[str, Array]:
    rows = weight.reshape(len(weight), -1)
    unit = np.abs(rows).max(1) / np.float32(LEVELS)
    unit = np.where(unit > 0, unit, np.float32(1)).astype(np.float32)
    whole = np.rint(rows / unit[:, None]).astype(np.int8).reshape(weight.shape)
    return {f"{layer}.weight": whole, f"{layer}.unit": unit}
