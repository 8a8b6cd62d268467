"""Runs a network on the processor, without torch.

    engine = Engine(layers)
    logits = engine(images, threads=2)

Same bits on every instruction set and for every number of threads: sums of ±1 are exact, and real
numbers are added in one order, by fused multiply-add.
"""

import ctypes
import threading
from collections.abc import Sequence

import numpy as np

from native import build
from native.layers import Floats, Layer
from native.library import Images, Library
from native.plan import Plan

MOST_PLANS = 8  # sizes of images that an engine remembers
MOST_THREADS = 256
WITH_TILES = ("amx",)  # the instruction sets that multiply tiles


class Engine:
    """Calls of a network of ``layers``, for images of ``channels`` channels.

    ``instructions`` is one of ``instruction_sets()``, by default the fastest. Raises ``NoLibrary``
    where the library is not there and cannot be built.
    """

    def __init__(
        self, layers: Sequence[Layer], channels: int = 3, instructions: str | None = None
    ) -> None:
        self.layers, self.channels = tuple(layers), channels
        self._library = Library(build.library())
        self.instructions = instructions or self._library.instructions()[0]
        self._plans: dict[tuple[int, int], Plan] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Floats, threads: int = 1) -> Floats:
        """The last value of each of the images (N, C, H, W), float32 of any strides.

        An image with a pixel that is not finite gives NaN. Raises ValueError where images of this
        size do not fit the network.
        """
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images are {images.dtype} {images.shape}; give float32 (N, C, H, W)")
        with self._lock:
            plan = self._plan(*images.shape[2:])
            return self._run(plan, images, max(1, min(threads, MOST_THREADS)))

    def _plan(self, height: int, width: int) -> Plan:
        size = height, width
        if size not in self._plans:
            has_tiles = self.instructions in WITH_TILES
            plan = Plan(self.layers, self.channels, height, width, has_tiles=has_tiles)
            while len(self._plans) >= MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[size] = plan
        return self._plans[size]

    def _run(self, plan: Plan, images: Floats, threads: int) -> Floats:
        end, count = plan.result, len(images)
        results = np.empty((count, *end.shape), dtype=np.float32)
        places = (ctypes.c_void_p * threads)(*plan.places(threads if count >= threads else 1))
        strides = [stride // images.itemsize for stride in images.strides]
        call = Images(
            pixels=images.ctypes.data,
            strides=(ctypes.c_int64 * 4)(*strides),
            count=count,
            arenas=places,
            results=results.ctypes.data,
        )
        self._library.run(plan.program, self.instructions, threads, call)
        return results[:, :, 0, 0] if end.is_vector else results


def instruction_sets() -> list[str]:
    """Those that this processor has, from the fastest to ``portable``."""
    return Library(build.library()).instructions()
