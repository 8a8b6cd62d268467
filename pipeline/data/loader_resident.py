"""Images that lie on the training device as uint8, and are shuffled, cropped, flipped and
normalised there.

There are no workers and no queues: CIFAR-10's 50,000 images are 154 MB, and a batch takes one pass
over its own pixels.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kernels.crop import PADDING, crop_flip_normalize
from pipeline.data.batch import fit_batch, pieces_of
from pipeline.data.cifar_files import CifarSplit, load_cifar
from pipeline.data.draws import MEAN, STD, uniforms
from pipeline.data.loader import IGNORED, Batch, Loader, image_dtype
from pipeline.data.plan import Plan
from pipeline.data.tree import check_classes
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.run.problems import Problems


def open_cifar(config: Config, device: torch.device, splits: Sequence[str]) -> list[Loader]:
    """The loaders of CIFAR-10 or CIFAR-100, whose test set is for validation, as ``config``
    describes them."""
    data = config.data
    loaded: dict[str, CifarSplit] = {}
    problems = Problems(local=True)
    for split in splits:
        with problems.noted():
            loaded[split] = load_cifar(
                data.dataset,
                None if data.path is None else Path(data.path),
                split="train" if split == "train" else "test",
                download=data.download,
                excluded=data.exclude,
            )
    if "train" in loaded:
        with problems.noted():
            check_classes(config, loaded["train"].classes)
    with problems.noted():
        _check_sides(config)
    problems.raise_all()
    return [
        CifarLoader(
            images,
            batch_size=fit_batch(data.batch_size, len(images.labels), pieces_of(config))
            if split == "train"
            else data.eval_batch_size,
            train=split == "train",
            augment=data.augment,
            seed=config.seed,
            dtype=image_dtype(config.train.precision, device, resident=True),
            device=device,
        )
        for split, images in loaded.items()
    ]


def _check_sides(config: Config) -> None:
    """Raise UserError where images are to be resized, which is not done on the device."""
    if config.data.train_sizes:
        raise UserError(
            f"data.train_sizes is {config.data.train_sizes}, but the images of "
            f"data.dataset={config.data.dataset} stay as they are; set data.train_sizes=null"
        )


class CifarLoader:
    """The ``Loader`` of a split that lies on ``device``.

    Training images come in a new order in each epoch, and are cropped and flipped if ``augment``,
    by draws that depend on (seed, epoch, image) alone; the last images that fill no batch are left
    out. Evaluation delivers every image once, in order and as it is; images whose label is IGNORED
    fill its last batch up. Images are (x / 255 - mean) / std, computed in float32 and given as
    ``dtype``.
    """

    def __init__(
        self,
        split: CifarSplit,
        *,
        batch_size: int,
        train: bool,
        augment: bool,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        n = len(split.labels)
        self._plan = Plan(n, batch_size, train, seed, processes.rank(), processes.size())
        self._plan.check_batch_size()
        self.images = len(self) * batch_size if train else n
        self.left = n - self.images
        self.classes, self.fingerprint = split.classes, split.fingerprint
        self._augment, self._dtype, self._device = train and augment, dtype, device
        self._pixels = split.images.contiguous().to(device)
        self._labels = split.labels.to(device)
        self._mean = torch.tensor(MEAN, dtype=torch.float32, device=device)
        self._std = torch.tensor(STD, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of epoch ``epoch`` (both from 0)."""
        cursor = Cursor(self, epoch)
        cursor.seek(epoch, start)
        for _ in range(start, self._plan.batches):
            yield cursor.draw()

    def cursor(self) -> "Cursor":
        """A place in the epochs; the cursors of one loader are independent of each other."""
        return Cursor(self)

    def contents(self, epoch: int) -> torch.Tensor:
        """What the batches of an epoch hold, (rows, batches, images in a batch) int64.

        The rows are the index of the image, its label and, if images are augmented, the top and the
        left of its crop and whether it is flipped.
        """
        order = self._order(epoch)
        index = order.clamp(min=0)
        labels = self._labels.index_select(0, index).masked_fill_(order < 0, IGNORED)
        rows = [index, labels]
        if self._augment:
            draws = uniforms(self._plan.seed, epoch, index, 3)
            rows += (draws[:, :2].T * (2 * PADDING + 1)).long().unbind()
            rows.append((draws[:, 2] < 0.5).long())
        return torch.stack(rows).view(len(rows), self._plan.batches, -1)

    def _order(self, epoch: int) -> torch.Tensor:
        """The images of all batches, one batch after the other, (N,) int64; -1 fills the last batch
        up."""
        plan = self._plan
        order = np.full(plan.batches * plan.local_batch_size, -1, np.int64)
        for batch in range(plan.batches):
            images = plan.indices((epoch, batch))
            first = batch * plan.local_batch_size
            order[first : first + len(images)] = images
        host = torch.from_numpy(order)
        if self._device.type == "cuda":
            host = host.pin_memory()  # else the copy would wait for the device
        return host.to(self._device, non_blocking=True)

    def batch(self, rows: torch.Tensor) -> Batch:
        """The batch that one batch's rows of ``contents``, (rows, images), describe."""
        index, labels, *draws = rows.unbind()
        crop = (draws[0], draws[1], draws[2].bool()) if draws else None
        images = crop_flip_normalize(self._pixels, index, self._mean, self._std, self._dtype, crop)
        return Batch(images, labels)


class Cursor:
    """The ``pipeline.data.loader.Cursor`` of a CifarLoader; its ``seek`` waits for nothing."""

    def __init__(self, loader: CifarLoader, epoch: int = 0) -> None:
        self.loader, self.epoch = loader, epoch
        self.contents = loader.contents(epoch)
        self.at = self.contents.new_zeros(1)
        self.following: tuple[int, torch.Tensor] | None = None

    def seek(self, epoch: int, start: int = 0) -> None:
        """Let the next batch be number ``start`` of ``epoch`` (both from 0)."""
        if epoch != self.epoch:
            self.look_ahead(epoch)
            assert self.following is not None
            self.epoch = epoch
            self.contents.copy_(self.following[1])
        self.at.fill_(start)

    def look_ahead(self, epoch: int) -> None:
        """Make the contents of ``epoch`` now, which ``seek`` will need: the host takes milliseconds
        for the order, while the device still has steps of this epoch to do."""
        if self.following is None or self.following[0] != epoch:
            self.following = epoch, self.loader.contents(epoch)

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that ``draw`` reads and writes."""
        return [self.contents, self.at]

    def draw(self) -> Batch:
        """The next batch."""
        rows = self.contents.index_select(1, self.at).squeeze(1)
        self.at += 1
        return self.loader.batch(rows)
