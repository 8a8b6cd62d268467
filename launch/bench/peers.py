"""Other engines for processors, where they are installed: onnxruntime and OpenVINO.

A peer takes a file and a number of threads, and gives what turns images into logits. The packages
are the extra ``peers`` of pyproject.toml, which make setup leaves out.
"""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.export.program import Array

Call = Callable[[Array], Array]
PACKAGES = ("onnx", "onnxruntime", "openvino")


def write_onnx(network: nn.Module, images: Array, path: Path) -> None:
    """``network`` as an ONNX file, for batches of any size. Raises ImportError without onnx."""
    import onnx  # noqa: F401  its absence would end torch's exporter in its middle

    options: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_axes": {"images": {0: "N"}, "logits": {0: "N"}},
        "dynamo": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that folds constants says that it is old
        torch.onnx.export(network, (torch.from_numpy(images),), str(path), **options)


def quantize(source: Path, images: Array, path: Path) -> None:
    """The ONNX file ``source`` in int8, calibrated on ``images``. Raises ImportError without
    onnxruntime."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"images": images}])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantization.quantize_static(
        str(source), str(path), Reader(), per_channel=True, op_types_to_quantize=["Conv", "Gemm"]
    )


def onnxruntime(path: Path, threads: int) -> Call:
    """The ONNX file ``path`` in onnxruntime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino(path: Path, threads: int) -> Call:
    """The ONNX file, or the OpenVINO graph, ``path`` in OpenVINO, in float32 where it is not in
    fewer bits."""
    import openvino as ov

    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = ov.Core()
    model = core.read_model(str(path))

    @cache
    def request(shape: tuple[int, ...]) -> Any:
        sized = model.clone()
        if model.is_dynamic():
            sized.reshape(list(shape))  # graphs of one size are faster
        return core.compile_model(sized, "CPU", hints).create_infer_request()

    def infer(images: Array) -> Array:
        return np.array(request(images.shape).infer([images], share_inputs=True)[0])

    def one_by_one(images: Array) -> Array:
        return np.concatenate([infer(images[i : i + 1]) for i in range(len(images))])

    return infer if model.is_dynamic() else one_by_one
