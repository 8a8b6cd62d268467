"""Too little memory on a GPU: one line that says which batch would fit.

Where a step fails, how much it would have taken is not known. So two small batches are tried after
it, once its memory is free again, and a line through what they took gives the largest that fits.
"""

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from models.layers import NormBinarize
from pipeline.data.loader import Batch, image_dtype
from pipeline.data.open import DATASETS, expected_images, train_sides
from pipeline.run import processes
from pipeline.run.cards import ON_THE_CPU, held_by_others
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.train.gradients import add_gradients
from pipeline.train.loss import Loss
from pipeline.train.state import TrainState

MARGIN = 0.15  # the share of the free memory that is left: a graph's has gaps, cuDNN wants some
SMALL = 16  # of the two batches that are tried the smaller one is that part of the failed one
MOST = 0.75  # of a batch that failed: no larger one is promised, whatever was measured
SIGNS = ("out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
GIB = 2**30

Try = Callable[[Batch], object]


class Line(NamedTuple):
    """The bytes that a step takes: ``fixed``, and ``each`` for an image."""

    fixed: float
    each: float

    def at(self, images: int) -> float:
        """The bytes of a step of so many images."""
        return self.fixed + self.each * images

    def fitting(self, free: float, failed: int) -> int:
        """How many images fit into ``free`` bytes, with a margin, if ``failed`` did not."""
        images = ((1 - MARGIN) * free - self.fixed) / max(self.each, 1)
        return max(0, min(int(images), int(MOST * failed)))


def is_shortage(error: BaseException) -> bool:
    """Whether ``error``, or one that it came from, says that a GPU has too little memory."""
    found = [str(each) for each in _chain(error) if isinstance(each, RuntimeError)]
    return any(sign in said for said in found for sign in SIGNS)


@dataclass
class Work:
    """What is done with batches on a GPU: training where ``trains``, else evaluation.

    ``try_`` does it with any batch, without the other processes, and leaves ``model`` as it may.
    ``forget`` gives up what is kept between batches.
    """

    config: Config
    device: torch.device
    model: nn.Module
    trains: bool
    try_: Try
    forget: Callable[[], None]

    @property
    def images(self) -> int:
        """The images that lie on this GPU at a time."""
        data, size = self.config.data, processes.size()
        if not self.trains:
            return -(-data.eval_batch_size // size)
        return data.batch_size // size // self.config.train.grad_accumulation

    def batch(self, images: int) -> Batch:
        """A batch of so many black images."""
        is_resident = DATASETS[self.config.data.dataset].is_resident
        side = max(train_sides(self.config)) if self.trains else expected_images(self.config)[0]
        dtype = image_dtype(self.config.train.precision, self.device, resident=is_resident)
        black = torch.zeros(images, 3, side, side, dtype=dtype, device=self.device)
        labels = torch.zeros(images, dtype=torch.int64, device=self.device)
        return Batch(black.contiguous(memory_format=torch.channels_last), labels)

    def remedy(self, fits: int) -> str:
        """What to set where ``fits`` images fit at a time."""
        size, train = processes.size(), self.config.train
        if not fits:
            return f"not even two images fit; {ON_THE_CPU}, or take a GPU with more free memory"
        if not self.trains:
            return f"set data.eval_batch_size={fits * size}"
        share = self.config.data.batch_size // size
        parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= fits)
        batch = fits * size * train.grad_accumulation
        return f"set train.grad_accumulation={parts}, or data.batch_size={batch}"


def training(
    config: Config,
    device: torch.device,
    state: TrainState,
    loss_of: Loss,
    forget: Callable[[], None],
) -> Work:
    """The training of ``state``, after whose shortage no other step can be taken."""
    whole = config.changed({"train.grad_accumulation": 1})

    def give_up() -> None:
        forget()
        state.optimizer.zero_grad(set_to_none=True)

    def try_(batch: Batch) -> None:
        add_gradients(state.model, batch, state.scaler, whole, loss_of)
        state.optimizer.zero_grad(set_to_none=True)

    return Work(config, device, state.model, trains=True, try_=try_, forget=give_up)


@contextlib.contextmanager
def explained(work: Work) -> Iterator[None]:
    """Within this context ``work`` that lacks memory is a UserError which says what would fit."""
    try:
        yield
    except RuntimeError as error:
        if not (is_shortage(error) and work.device.type == "cuda"):
            raise
        for each in _chain(error):
            traceback.clear_frames(each.__traceback__)  # they hold the memory of the step
        _give_back(work)
        raise UserError(_why(work)) from None


@contextlib.contextmanager
def shortage_explained() -> Iterator[None]:
    """Within this context any other shortage, such as before the first step, is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not (is_shortage(error) and torch.cuda.is_initialized()):
            raise
        device = torch.device("cuda", torch.cuda.current_device())
        raise UserError(f"{_room(device)}; {ON_THE_CPU}, or end what fills it") from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(work: Work) -> str:
    """What is to be said of a shortage; tries what would fit."""
    key = "data.batch_size" if work.trains else "data.eval_batch_size"
    of = getattr(work.config.data, key.removeprefix("data."))
    line = _measure(work)
    with _spare(work):
        fits = line.fitting(_free(work.device), work.images) if line else 0
    need = f", and {line.at(work.images) / GIB:.1f} GiB are needed" if line else ""
    return f"{key}={of} is too large: {_room(work.device)}{need}; {work.remedy(fits)}"


@contextlib.contextmanager
def _spare(work: Work) -> Iterator[None]:
    """Within this context memory is taken as by the batch that a graph or a loader keeps beside the
    one at work; it is whole, however many parts it is taken in."""
    images = work.images * (work.config.train.grad_accumulation if work.trains else 1)
    batch = None
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        batch = work.batch(images)
    yield
    del batch


def _measure(work: Work) -> Line | None:
    """The memory that batches take; None where two images are too many."""
    for module in work.model.modules():
        if isinstance(module, NormBinarize):
            module.sync = False
    small = max(1, work.images // SMALL)
    while small:
        if line := _line_through(work, small):
            return line
        small //= 2
    return None


def _line_through(work: Work, small: int) -> Line | None:
    """The line through ``small`` and twice as many images; None where they do not fit."""
    try:
        _peak(work, small)  # what the first call takes, a later one finds there
        first, second = (_peak(work, images) for images in (small, 2 * small))
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        traceback.clear_frames(error.__traceback__)
        _give_back(work)
        return None
    each = max(0.0, (second - first) / small)
    return Line(first - each * small, each)


def _give_back(work: Work) -> None:
    """Give up all memory that is not needed between batches."""
    work.forget()
    gc.collect()
    torch.cuda.empty_cache()


def _peak(work: Work, images: int) -> int:
    """The bytes that so many images take beside what lies there already."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(work.device)
    before = torch.cuda.memory_allocated(work.device)
    work.try_(work.batch(images))
    return torch.cuda.max_memory_allocated(work.device) - before


def _free(device: torch.device) -> int:
    """The bytes that this process could still use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _room(device: torch.device) -> str:
    """How much memory is free, and how much of it others hold where that is much."""
    total, held = torch.cuda.mem_get_info(device)[1], held_by_others(device)
    others = f" (other processes, which nvidia-smi lists, hold {held / GIB:.1f})"
    said = f"GPU {device.index} has {_free(device) / GIB:.1f} of {total / GIB:.1f} GiB free"
    return said + (others if held else "")
