"""An OpenVINO graph that export wrote, run by its CPU plugin."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino

from pipeline.export.description import KEY, from_text
from pipeline.export.packed import About
from pipeline.export.program import Array
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

# On processors with bf16 the plugin would round real layers, and flip signs behind them.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
START = b'<?xml version="1.0"?>'  # of a graph of OpenVINO's own


def open_openvino(path: Path, threads: int) -> tuple[About, int, Callable[[Array], Array]]:
    """What the network in ``path`` is, the number of its classes, and what gives its logits, one
    image at a time.

    Raises UserError where the file is none that export wrote, or is damaged.
    """
    try:
        with open_file(path) as file:
            if file.read(len(START)) != START:  # other readers would try it, and complain
                raise ValueError
        model = openvino.Core().read_model(path)
        about = from_text(model.get_rt_info(KEY).astype(str))
        compiled = openvino.compile_model(model, "CPU", {**EXACT, "INFERENCE_NUM_THREADS": threads})
        _, classes = compiled.output("logits").shape
    except Exception:  # openvino has many, and none in common
        raise UserError(
            f"{path} is no OpenVINO file that export wrote, or it or its .bin is damaged; export "
            "the network again"
        ) from None

    def logits(images: Array) -> Array:
        each = (compiled({"images": image[None]})["logits"] for image in images)
        return np.concatenate([found.copy() for found in each])

    return about, classes, logits
