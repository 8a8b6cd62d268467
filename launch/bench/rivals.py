"""What our training is measured against, over the same images: the official formulation, and what
a good engineer gets in an afternoon.

official: plain modules, boolean masks, o read in every step, fp32, NCHW; epochs through a
DataLoader whose workers crop and flip PIL images, and three ``.item()`` a step.
compile: plain modules with a where-based estimator and o on the device, channels_last, bf16 on a
GPU, fused SGD, images resident on the device; torch.compile with mode reduce-overhead.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from launch.bench.kernels import WhereSign
from launch.bench.official import OfficialConv2d, set_official_o
from pipeline.data.cifar_files import CifarSplit
from pipeline.data.draws import MEAN, STD
from pipeline.data.loader import Batch
from pipeline.data.loader_resident import CifarLoader
from pipeline.train.metrics import Sums

Splits = tuple[CifarSplit, CifarSplit]  # training and test images


class PlainConv2d(OfficialConv2d):
    """``OfficialConv2d`` by torch.where, at o = 2, t = 1.5, m = 0.1."""

    params: Tensor

    def __init__(self, in_channels: int, channels: int, stride: int, bits: str) -> None:
        super().__init__(in_channels, channels, stride, bits)
        self.register_buffer("params", torch.tensor([2.0, 1.5, 0.1]), persistent=False)

    def sign(self, x: Tensor) -> Tensor:
        return WhereSign.apply(x, self.params)


def sgd(model: nn.Module, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """The recipe's optimizer; None: torch's own choice, which is the multi-tensor one on a GPU."""
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-4, "fused": fused}
    return torch.optim.SGD(model.parameters(), 0.1, **options)


class Official:
    """The official training; ``model`` of the official formulation, or of the official code."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        set_official_o(model, torch.tensor(2.0))
        self.optimizer = sgd(model)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One training step: logits and loss."""
        logits = self.model(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logits, loss

    def epochs(self, splits: Splits, batch_size: int, workers: int) -> Callable[[], None]:
        """What trains on all images once and evaluates."""
        loaders = [
            DataLoader(PilImages(split, transform(train)), batch_size, train, num_workers=workers,
                       pin_memory=self.device.type == "cuda")
            for split, train in zip(splits, (True, False), strict=True)
        ]  # fmt: skip

        def epoch() -> None:
            for images, labels in loaders[0]:
                batch = Batch(images.to(self.device), labels.to(self.device))
                read(*self.step(batch), batch.labels)
            self.model.eval()
            with torch.no_grad():
                for images, labels in loaders[1]:
                    logits, labels = self.model(images.to(self.device)), labels.to(self.device)
                    read(logits, F.cross_entropy(logits, labels), labels)
            self.model.train()

        return epoch


def read(logits: Tensor, loss: Tensor, labels: Tensor) -> None:
    """Loss, top-1 and top-5 on the host, as the official code reads them in every step."""
    hits = logits.topk(5).indices == labels[:, None]
    _ = loss.item(), hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


def transform(train: bool) -> Callable[[Any], Tensor]:
    """The official transforms of CIFAR-10."""
    from torchvision import transforms

    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([*(augment if train else []), *normalize])


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 with a transform of PIL's images gives them."""

    def __init__(self, split: CifarSplit, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform
        self.images, self.labels = split.images.numpy(), split.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Compiled:
    """Plain modules under torch.compile; ``model`` made of ``PlainConv2d``."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.dtype = device, dtype
        self.optimizer = sgd(model, fused=True)
        self.forward = torch.compile(self._forward, mode="reduce-overhead")

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            logits = self.model(images)
            return logits, F.cross_entropy(logits, labels)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One training step: logits and loss."""
        logits, loss = self.forward(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return logits.detach(), loss.detach()

    def epochs(self, train: CifarLoader, test: CifarLoader) -> Callable[[], None]:
        """What trains on all images once and evaluates."""
        sums, number = Sums(self.device), iter(range(10**9))

        def epoch() -> None:
            for batch in train.epoch(next(number)):
                sums.update(*_ordered(batch, *self.step(batch)))
            self.model.eval()
            with torch.no_grad():
                for batch in test.epoch(0):
                    sums.update(*_ordered(batch, *self.forward(*batch)))
            self.model.train()
            sums.means()

        return epoch


def _ordered(batch: Batch, logits: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits, batch.labels, loss
