"""Image folders through NVIDIA DALI, which reads, decodes, crops, resizes, flips and normalises on
a GPU or on the CPU.

Which image comes when, and with which crop and flip, is decided in draws.py and plan.py. Only the
last step from the random numbers to a window needs the size of the image, which DALI sees first:
that arithmetic is written in DALI's operators here, one image at a time, and gives the same
windows.
"""

import os
from collections import deque
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia import dali
from torch.utils.dlpack import from_dlpack

from pipeline.data.draws import ATTEMPTS, FLIP_COLUMN, MEAN, STD, crop_place, crop_sides
from pipeline.data.image import first_unreadable
from pipeline.data.loader import Batch
from pipeline.data.loader_stream import FolderLoader
from pipeline.data.plan import Plan, Position
from pipeline.data.tree import ImageFolder

fn: Any = dali.fn  # the type stubs that come with DALI know only part of these three
math: Any = dali.math
types: Any = dali.types

PREFETCH = 3  # batches under way, including the one that is waited for
DECODER = {
    "adjust_orientation": False,
    "hw_decoder_load": 0.75,  # share of the JPEGs that goes to the GPU's JPEG engines
    "preallocate_width_hint": 5980,  # buffers for ImageNet's largest image never have to grow
    "preallocate_height_hint": 6430,
}


class DaliLoader(FolderLoader):
    """The fast ``Loader`` of an image folder. ``workers`` is the number of DALI's CPU threads.

    Only the window of a JPEG is decoded: in training, a file that is cut off below it passes
    (``./reste prepare verify`` finds it).
    """

    def _open(self, position: Position) -> Any:
        min_area = self.min_area if self.random else None
        self._source = _Source(self.folder, self.plan, min_area, position)
        return _images_and_labels(
            self._source,
            self.device.type == "cuda",
            self.random,
            self.resize,
            self.size,
            types.FLOAT16 if self.dtype == torch.float16 else types.FLOAT,
            batch_size=self.plan.local_batch_size,
            num_threads=max(1, self.workers),
            device_id=_device_id(self.device),
            prefetch_queue_depth=PREFETCH,
        )

    def _read(self) -> Batch:
        try:
            images, labels = self._stream.run()
        except RuntimeError as error:  # most of DALI's messages do not name the file
            raise (first_unreadable(self._source.paths_under_way()) or error) from None
        nhwc = from_dlpack(images.as_tensor())  # shares DALI's buffer and keeps it alive
        return Batch(nhwc.permute(0, 3, 1, 2).to(self.dtype), from_dlpack(labels.as_tensor()))


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


class _Source:
    """Feeds the pipeline one batch after the other from ``position`` on, endlessly.

    ``min_area``: of the random crops, or None for central ones. Kept apart from the loader, which
    would otherwise be in a cycle of references with its pipeline and outlive its use.
    """

    def __init__(
        self, folder: ImageFolder, plan: Plan, min_area: float | None, position: Position
    ) -> None:
        self._folder, self._plan, self._min_area = folder, plan, min_area
        self._position = position
        self._under_way: deque[list[str]] = deque(maxlen=PREFETCH)

    def __call__(self) -> tuple[npt.NDArray[Any], ...]:
        """Paths (N, length) uint8, zero-padded, and labels (N,) int64; for random crops also
        sides (N, ATTEMPTS, 2) and places (N, 2), float64, and flips (N,) int32."""
        position, self._position = self._position, self._plan.following(self._position)
        indices = self._plan.indices(position)
        self._under_way.append(self._folder.paths(indices))
        paths = np.array([os.fsencode(path) for path in self._under_way[-1]])
        fed = paths.view(np.uint8).reshape(len(paths), -1), self._folder.labels[indices]
        if self._min_area is None:
            return fed
        u = self._plan.uniforms(position)
        flip = (u[:, FLIP_COLUMN] < 0.5).astype(np.int32)
        return *fed, crop_sides(u, self._min_area), crop_place(u).copy(), flip

    def paths_under_way(self) -> chain[str]:
        return chain.from_iterable(self._under_way)


@dali.pipeline_def
def _images_and_labels(
    source: _Source, on_gpu: bool, random: bool, resize: int, size: int, dtype: Any
) -> tuple[Any, Any]:
    """Images (N, size, size, 3) and labels (N,), on the GPU if the pipeline has one."""
    path, label, *draws = fn.external_source(
        source,
        num_outputs=5 if random else 2,
        dtype=[types.UINT8, types.INT64, types.FLOAT64, types.FLOAT64, types.INT32],
        ndim=[1, 0, 2, 1, 0],
    )
    file = fn.io.file.read(path)
    hw = fn.cast(fn.peek_image_shape(file, adjust_orientation=False)[:2], dtype=types.FLOAT64)
    decoder = {"device": "mixed" if on_gpu else "cpu", **DECODER}
    if random:
        sides, place, flip = draws
        start, shape = _crop_window(hw, sides, place)
        window = fn.decoders.image_slice(file, start=start, shape=shape, axes=[0, 1], **decoder)
        roi = {}
    else:
        flip = 0
        window = fn.decoders.image(file, **decoder)
        start, end = _central_window(hw, resize, size)
        roi = {"roi_start": start, "roi_end": end}
    # Training and evaluation take the same filter: mixed ones are known to cost accuracy.
    image = fn.resize(
        window, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True, **roi
    )
    image = fn.crop_mirror_normalize(
        image,
        mirror=flip,
        mean=[255 * mean for mean in MEAN],
        std=[255 * std for std in STD],
        dtype=dtype,
        output_layout="HWC",
    )
    return image, label.gpu() if on_gpu else label


def _crop_window(hw: Any, sides: Any, place: Any) -> tuple[Any, Any]:
    """The window of one image as ``draws.random_resized_crop`` gives it: (top, left) and (height,
    width), int32.

    hw (2,), sides (ATTEMPTS, 2) and place (2,) are float64, so that both round alike.
    """
    drawn = math.floor(sides * math.sqrt(hw[0] * hw[1]) + 0.5)
    fits = fn.reductions.min(fn.cast((drawn > 0) & (drawn <= hw), dtype=types.INT32), axes=1)
    rank = fits * types.Constant(np.arange(ATTEMPTS, 0, -1, dtype=np.int32))
    best = fn.reductions.max(rank)
    is_first = fn.reshape(rank == best, shape=[ATTEMPTS, 1])
    first = fn.reductions.sum(fn.cast(drawn, dtype=types.INT32) * is_first, axes=0)
    central = math.min(hw, math.floor(fn.stack(hw[1], hw[0]) * 4 / 3 + 0.5))
    shape = first * (best > 0) + central * (best == 0)
    placed, middle = math.floor(place * (hw - shape + 1)), math.floor((hw - shape) / 2)
    start = placed * (best > 0) + middle * (best == 0)
    return fn.cast(start, dtype=types.INT32), fn.cast(shape, dtype=types.INT32)


def _central_window(hw: Any, resize: int, size: int) -> tuple[Any, Any]:
    """The part of one image that torchvision's Resize(resize) and CenterCrop(size) show: its start
    and end, (2,) float32, in pixels of the image.

    Resize rounds the long side down, CenterCrop halves the margin and rounds half to even.
    """
    resized = math.floor(hw * resize / math.min(hw[0], hw[1]))
    margin = fn.cast(resized - size, dtype=types.INT32)
    start = (margin + 1) // 2 - ((margin & 3) == 1)
    scale = hw / resized
    start, end = start * scale, (start + size) * scale
    return fn.cast(start, dtype=types.FLOAT), fn.cast(end, dtype=types.FLOAT)
