"""Image folders through NVIDIA DALI, which reads, decodes, crops, resizes, flips and normalises on
a GPU or on the CPU.

DALI decodes the plain kinds of files (see header.py), and the same files again if it refuses one
of them, by Pillow: what Pillow decodes, in threads, is given to DALI as the bytes of a PPM file,
which is nothing but a header and the pixels. So all kinds of files meet in one batch, and a file
that cannot be read is an error of the batch that it belongs to. Of the files of a tree DALI gets
the paths, and of those in shards the bytes.

Which image comes when, and with which crop and flip, is decided in draws.py and plan.py. Only the
last step from the random numbers to a window needs the size of the image, which DALI sees first:
that arithmetic is written in DALI's operators here, one image at a time, and gives the same
windows.
"""

import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia import dali
from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray, to_torch_type
from torch.utils.dlpack import from_dlpack

from pipeline.data.draws import ATTEMPTS, FLIP_COLUMN, MEAN, STD, Ints, crop_place, crop_sides
from pipeline.data.header import is_plain
from pipeline.data.loader import Batch
from pipeline.data.loader_stream import FolderLoader
from pipeline.data.plan import Plan, Position
from pipeline.data.store import Store
from pipeline.data.tree import ImageFolder
from pipeline.run.console import logger
from pipeline.run.errors import UserError

fn: Any = dali.fn  # the type stubs that come with DALI know only part of these three
dali_math: Any = dali.math
types: Any = dali.types

PREFETCH = 3  # batches under way, including the one that is waited for
PADDING = 211_025_920, 140_544_512  # bytes that a thread of nvJPEG begins with, device and host
LARGEST = 5980, 6430  # pixels: the sides of ImageNet's largest image
ROOM = 2 << 30  # bytes that the buffers of each kind may begin with; all of them can grow

UNKNOWN, DALI, PILLOW = range(3)  # who decodes an image, which is seen when it is first wanted

Bytes = npt.NDArray[np.uint8]
Look = tuple[int, Bytes | UserError]  # an image that is fed as bytes, or the error


class DaliLoader(FolderLoader):
    """The fast ``Loader`` of an image folder. ``workers`` is the number of DALI's CPU threads."""

    _decoders: Bytes | None = None  # of all images of the folder
    _outlet: Any = None

    def _open(self, position: Position) -> Any:
        if self._decoders is None:
            self._decoders = np.full(len(self.folder.files), UNKNOWN, np.uint8)
        min_area = self.min_area if self.random else None
        self._source = _Source(
            self.folder, self.plan, min_area, position, self._decoders, self.workers
        )
        source = weakref.ref(self._source)  # DALI keeps what it is given in a cycle of references
        return _images_and_labels(
            lambda: source()(),  # type: ignore[misc]
            _decoder(self) if self.device.type == "cuda" else {"device": "cpu"},
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
            images, labels = self._run()
        except RuntimeError as error:  # most of DALI's messages do not name the file
            images, labels = self._read_by_pillow(error)
        if bad := self._source.under_way.popleft().error:
            raise bad
        if self.device.type == "cuda":
            nhwc, labels = self._outlet.take(images, labels)
        else:  # these share DALI's buffers and keep them alive
            nhwc, labels = from_dlpack(images.as_tensor()), from_dlpack(labels.as_tensor())
        return Batch(nhwc.permute(0, 3, 1, 2).to(self.dtype), labels)

    def _run(self) -> Any:
        """The next outputs; on a GPU the outlet's stream waits for them, and not the host."""
        if self.device.type != "cuda":
            return self._stream.run()
        if self._outlet is None:
            self._outlet = Outlet(self.device)
        return self._stream.run(self._outlet.stream)

    def _read_by_pillow(self, error: RuntimeError) -> Any:
        """The outputs of the batch on which DALI failed, once Pillow decodes the files that are
        under way; ``error`` again where that changes nothing."""
        assert self._decoders is not None
        batches = self._source.under_way
        images = [image for batch in batches for image in batch.images]
        if (self._decoders[images] == PILLOW).all():
            raise error
        self._decoders[images] = PILLOW
        self._stream = None
        self._stream = self._open(batches[0].position)
        outputs = self._run()
        if not any(batch.error for batch in self._source.under_way):
            reason = str(error).rpartition("encountered:")[2].strip().partition("\n")[0]
            logger.warning(
                "DALI failed (%s); Pillow decodes the %d images under way", reason, len(images)
            )
        return outputs


class Outlet:
    """Takes batches out of DALI's buffers on a GPU, on a stream of its own, so that the copy
    overlaps with the step before.

    DALI's buffers could be shared, but giving one back then waits for the device, and not in a
    capture.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()  # what is being copied

    def take(self, *outputs: Any) -> list[torch.Tensor]:
        """Copies of DALI's ``outputs``, tensors of equal shapes, that the current stream can use.

        The host waits for nothing.
        """
        consumer, taken = torch.cuda.current_stream(self.stream.device), []
        with torch.cuda.stream(self.stream):
            for output in outputs:
                tensor = output.as_tensor()
                copy = torch.empty(
                    tensor.shape(), dtype=to_torch_type[tensor.dtype], device=self.stream.device
                )
                feed_ndarray(tensor, copy, cuda_stream=self.stream)
                copy.record_stream(consumer)
                taken.append(copy)
            done = self.stream.record_event()
        consumer.wait_event(done)
        self._held.append((done, outputs))
        while self._held and self._held[0][0].query():
            self._held.popleft()
        return taken


def _decoder(loader: DaliLoader) -> dict[str, Any]:
    """The options of the decoder on a GPU: buffers that seldom have to grow, in ``ROOM``."""
    threads = max(1, loader.workers)
    device, host = (min(padding, ROOM // threads) for padding in PADDING)
    images = max(1, math.ceil(loader.hw_decoder_load * loader.plan.local_batch_size))
    side = math.isqrt(ROOM // (3 * images))  # the engines have a buffer for every image
    return {
        "device": "mixed",
        "hw_decoder_load": loader.hw_decoder_load,
        "device_memory_padding": device,
        "host_memory_padding": host,
        "preallocate_width_hint": min(LARGEST[0], side),
        "preallocate_height_hint": min(LARGEST[1], side),
    }


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


BLANK = np.frombuffer(b"P6\n1 1\n255\n\0\0\0", np.uint8)  # stands in for an image with an error


class _Fed(NamedTuple):
    """A batch that DALI works at."""

    position: Position
    images: Ints
    error: UserError | None


class _Source:
    """Feeds the pipeline one batch after the other from ``position`` on, endlessly.

    ``min_area``: of the random crops, or None for central ones. ``decoders``: of all images, those
    that are not known yet are found out.
    """

    def __init__(
        self,
        folder: ImageFolder,
        plan: Plan,
        min_area: float | None,
        position: Position,
        decoders: Bytes,
        threads: int,
    ) -> None:
        self._folder, self._plan, self._min_area = folder, plan, min_area
        self._store = folder.store
        self._decoders, self._threads = decoders, max(1, threads)
        self._position = position
        self._pool = ThreadPoolExecutor(self._threads)
        self._ahead = self._look(position)  # at the files of the next batch
        self.under_way: deque[_Fed] = deque()

    def __call__(self) -> tuple[Any, ...]:
        """Files, N arrays uint8, each a path or the bytes of a file, whether they are paths (N,)
        bool, and labels (N,) int64; for random crops also sides (N, ATTEMPTS, 2) and places (N, 2),
        float64, and flips (N,) int32."""
        position, self._position = self._position, self._plan.following(self._position)
        looks, self._ahead = self._ahead, self._look(self._position)
        images = self._plan.indices(position)
        fed = *self._files(position, images, looks), self._folder.labels[images]
        if self._min_area is None:
            return fed
        u = self._plan.uniforms(position)
        flip = (u[:, FLIP_COLUMN] < 0.5).astype(np.int32)
        return *fed, crop_sides(u, self._min_area), crop_place(u).copy(), flip

    def _look(self, position: Position) -> list[Future[list[Look]]]:
        """Begin to look at the files of a batch of which DALI cannot take the paths, or which are
        not known yet."""
        images = self._plan.indices(position)
        if self._store.has_paths:
            images = images[self._decoders[images] != DALI]
        parts = np.array_split(images, min(len(images), self._threads) or 1)
        return [self._pool.submit(self._look_at, part.tolist()) for part in parts if len(part)]

    def _look_at(self, images: list[int]) -> list[Look]:
        looks = ((image, self._look_at_one(image, self._folder.files[image])) for image in images)
        return [(image, found) for image, found in looks if found is not None]

    def _look_at_one(self, image: int, name: str) -> Bytes | UserError | None:
        """What takes the place of an image's path, if anything does, after finding out who decodes
        the image."""
        try:
            if self._decoders[image] == UNKNOWN:
                with self._store.open(image, name) as file:
                    self._decoders[image] = DALI if is_plain(file) else PILLOW
            if self._decoders[image] == DALI and not self._store.has_paths:
                with self._store.open(image, name) as file:
                    return np.frombuffer(file.read(), np.uint8)
        except OSError:  # Pillow's attempt will say so
            self._decoders[image] = PILLOW
        return _decoded(self._store, image, name) if self._decoders[image] == PILLOW else None

    def _files(
        self, position: Position, images: Ints, looks: list[Future[list[Look]]]
    ) -> tuple[Bytes | list[Bytes], npt.NDArray[np.bool_]]:
        """The files of a batch, (N, length) zero-padded where all are paths; else a list."""
        names = np.array([os.fsencode(path) for path in self._folder.paths(images)])
        paths = names.view(np.uint8).reshape(len(images), -1)
        found = dict(look for part in looks for look in part.result())
        errors = [each for each in found.values() if isinstance(each, UserError)]
        self.under_way.append(_Fed(position, images, errors[0] if errors else None))
        is_path = np.array([image not in found for image in images.tolist()])
        if not found:
            return paths, is_path
        contents = [found.get(i, path) for i, path in zip(images.tolist(), paths, strict=True)]
        return [BLANK if isinstance(each, UserError) else each for each in contents], is_path


def _decoded(store: Store, image: int, name: str) -> Bytes | UserError:
    """An image as the bytes of a PPM file."""
    try:
        pixels = store.rgb(image, name)
    except UserError as error:
        return error
    head = b"P6\n%d %d\n255\n" % pixels.size
    return np.frombuffer(head + pixels.tobytes(), np.uint8)


@dali.pipeline_def(enable_conditionals=True)
def _images_and_labels(
    source: Callable[[], tuple[Any, ...]],
    decoder: dict[str, Any],
    random: bool,
    resize: int,
    size: int,
    dtype: Any,
) -> tuple[Any, Any]:
    """Images (N, size, size, 3) and labels (N,), on the GPU if the ``decoder`` has one."""
    file, is_path, label, *draws = fn.external_source(
        source,
        num_outputs=6 if random else 3,
        dtype=[types.UINT8, types.BOOL, types.INT64, types.FLOAT64, types.FLOAT64, types.INT32],
        ndim=[1, 0, 0, 2, 1, 0],
    )
    if is_path:
        file = fn.io.file.read(file)
    return _decoded_batch(file, label, draws, decoder, resize, size, dtype)


@dali.pipeline.do_not_convert  # else its source is rewritten for the sake of the "if" above
def _decoded_batch(
    file: Any,
    label: Any,
    draws: list[Any],
    decoder: dict[str, Any],
    resize: int,
    size: int,
    dtype: Any,
) -> tuple[Any, Any]:
    """Images and labels of ``file``; ``draws``: of random crops and flips, empty for none."""
    hw = fn.cast(fn.peek_image_shape(file, adjust_orientation=False)[:2], dtype=types.FLOAT64)
    decoder = {"adjust_orientation": False, **decoder}
    if draws:
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
    return image, label if decoder["device"] == "cpu" else label.gpu()


def _crop_window(hw: Any, sides: Any, place: Any) -> tuple[Any, Any]:
    """The window of one image as ``draws.random_resized_crop`` gives it: (top, left) and (height,
    width), int32.

    hw (2,), sides (ATTEMPTS, 2) and place (2,) are float64, so that both round alike.
    """
    drawn = dali_math.floor(sides * dali_math.sqrt(hw[0] * hw[1]) + 0.5)
    fits = fn.reductions.min(fn.cast((drawn > 0) & (drawn <= hw), dtype=types.INT32), axes=1)
    rank = fits * types.Constant(np.arange(ATTEMPTS, 0, -1, dtype=np.int32))
    best = fn.reductions.max(rank)
    is_first = fn.reshape(rank == best, shape=[ATTEMPTS, 1])
    first = fn.reductions.sum(fn.cast(drawn, dtype=types.INT32) * is_first, axes=0)
    central = dali_math.min(hw, dali_math.floor(fn.stack(hw[1], hw[0]) * 4 / 3 + 0.5))
    shape = first * (best > 0) + central * (best == 0)
    placed, middle = dali_math.floor(place * (hw - shape + 1)), dali_math.floor((hw - shape) / 2)
    start = placed * (best > 0) + middle * (best == 0)
    return fn.cast(start, dtype=types.INT32), fn.cast(shape, dtype=types.INT32)


def _central_window(hw: Any, resize: int, size: int) -> tuple[Any, Any]:
    """The part of one image that torchvision's Resize(resize) and CenterCrop(size) show: its start
    and end, (2,) float32, in pixels of the image.

    Resize rounds the long side down, CenterCrop halves the margin and rounds half to even.
    """
    resized = dali_math.floor(hw * resize / dali_math.min(hw[0], hw[1]))
    margin = fn.cast(resized - size, dtype=types.INT32)
    start = (margin + 1) // 2 - ((margin & 3) == 1)
    scale = hw / resized
    start, end = start * scale, (start + size) * scale
    return fn.cast(start, dtype=types.FLOAT), fn.cast(end, dtype=types.FLOAT)
