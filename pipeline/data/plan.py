"""Which images each batch of each epoch holds, in each process."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.data.draws import FLIP_COLUMN, Floats, Ints, uniforms
from pipeline.run.errors import UserError

Position = tuple[int, int]  # (epoch, batch), both from 0


def permutation(seed: int, epoch: int, n: int) -> Ints:
    """The order of ``n`` images in one epoch, (n,) int64.

    Sorts random keys instead of asking numpy for a permutation: numpy promises that the bits of
    a generator never change, but not what its methods make of them.
    """
    keys = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True)
class Plan:
    """Which images every batch holds.

    In training the order is a new one in each epoch, and the last images that fill no batch are
    left out. In evaluation every image comes once, in the order of the files.

    ``batch_size`` is that of all ``size`` processes together, and this is the share of ``rank``:
    in training an equal part of every batch, so that their number changes nothing; in evaluation
    a contiguous part of the images, and a size beyond their number means all of them.
    """

    images: int
    batch_size: int
    train: bool
    seed: int
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        assert not self.train or self.batch_size % self.size == 0

    def check_batch_size(self) -> None:
        """Raise UserError where no training is possible with batches of this size."""
        if not self.train or 2 <= self.batch_size <= self.images:
            return
        problem, possible = "1, but batch norm needs at least 2 images", 2
        if self.batch_size > self.images:
            problem = f"{self.batch_size}, more than the {self.images} training images"
            possible = self.images // self.size * self.size
        enough = max(2, self.size) <= self.images
        remedy = f"set data.batch_size={possible}" if enough else "add images"
        raise UserError(f"data.batch_size is {problem}; {remedy}")

    @property
    def local_batch_size(self) -> int:
        """The most images that a batch has in this process."""
        share = self.batch_size // self.size
        return max(1, share if self.train else min(share, -(-self.images // self.size)))

    def __len__(self) -> int:
        """The number of batches in an epoch, the same in all processes."""
        if self.train:
            return self.images // self.batch_size
        return -(-self.images // self.size // self.local_batch_size)

    @property
    def batches(self) -> int:
        """The number of batches in which this process has images; in evaluation it may be one less
        than the length."""
        if self.train:
            return len(self)
        first, stop = self._share
        return -(-(stop - first) // self.local_batch_size)

    @property
    def _share(self) -> tuple[int, int]:
        first, stop = (self.images * rank // self.size for rank in (self.rank, self.rank + 1))
        return first, stop

    def following(self, position: Position) -> Position:
        """The position after ``position``; evaluation stays in epoch 0 and begins it again."""
        epoch, batch = position
        return (epoch, batch + 1) if batch + 1 < self.batches else (epoch + self.train, 0)

    def places(self, batch: int) -> slice:
        """Where the images of one batch stand in the order of an epoch."""
        if self.train:
            first = batch * self.batch_size + self.rank * self.local_batch_size
            return slice(first, first + self.local_batch_size)
        first, stop = self._share
        first += batch * self.local_batch_size
        return slice(first, min(first + self.local_batch_size, stop))

    def indices(self, position: Position) -> Ints:
        """The images of one batch, (N,) int64."""
        epoch, batch = position
        chosen = self.places(batch)
        if self.train:
            return _kept_permutation(self.seed, epoch, self.images)[chosen]
        return np.arange(self.images)[chosen]

    def uniforms(self, position: Position) -> Floats:
        """The random numbers of one batch, (N, FLIP_COLUMN + 1), first for the crop, then for the
        flip."""
        index = torch.from_numpy(self.indices(position))
        return uniforms(self.seed, position[0], index, FLIP_COLUMN + 1).numpy()


@lru_cache(maxsize=2)  # at the end of an epoch the next one's first batches are already wanted
def _kept_permutation(seed: int, epoch: int, n: int) -> Ints:
    return permutation(seed, epoch, n)
