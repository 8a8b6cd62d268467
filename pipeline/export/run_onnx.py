"""An ONNX graph that export wrote, run by onnxruntime on the CPU."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime

from pipeline.export.description import KEY, from_text
from pipeline.export.packed import About
from pipeline.export.program import Array
from pipeline.run.errors import UserError


def open_onnx(
    path: Path, threads: int, *, optimizes: bool = True
) -> tuple[About, int, Callable[[Array], Array]]:
    """What the network in ``path`` is, the number of its classes, and what gives its logits, with
    onnxruntime's optimizations or, unless it ``optimizes``, by the graph as it stands.

    Raises UserError where the file is none that export wrote, or is damaged.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimizes:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        about = from_text(session.get_modelmeta().custom_metadata_map[KEY])
        _, classes = session.get_outputs()[0].shape
    except Exception:  # onnxruntime has many, and none in common
        raise UserError(
            f"{path} is no ONNX file that export wrote, or is damaged; export the network again"
        ) from None

    def logits(images: Array) -> Array:
        return session.run(["logits"], {"images": images})[0]

    return about, classes, logits
