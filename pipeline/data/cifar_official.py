"""CIFAR-10 and CIFAR-100 from torchvision's files, which it checks, and fetches where asked."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100

from pipeline.data.draws import Ints
from pipeline.run.errors import UserError

KINDS: dict[str, type[Any]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # by data.dataset


def read_official(
    name: str, root: Path, split: str, download: bool
) -> tuple[NDArray[np.uint8], Ints, tuple[str, ...]]:
    """The images (N, 32, 32, 3), the labels (N,) and the names of the classes of a split of
    ``name``, from torchvision's folder in ``root``.

    Raises UserError where files are missing or broken, or cannot be fetched.
    """
    kind = KINDS[name]
    for file in (root / kind.base_folder).glob("*"):
        if file.exists() and not file.is_file():  # torchvision would wait for a pipe
            raise UserError(
                f"data.path: {file} is no regular file; remove it and set data.download=true"
            )
    # Evaluation needs no training files.
    source = kind if split == "train" else type("TestOnly", (kind,), {"train_list": []})
    try:
        data = source(root, train=split == "train", download=download)
    except (OSError, RuntimeError, HTTPException) as error:
        problem = "is incomplete or damaged; data.download=true fetches it again"
        if download:
            problem = f"cannot be fetched ({error}); check the network and the disk"
        raise UserError(f"data.path: {root / kind.base_folder} {problem}") from error
    return np.ascontiguousarray(data.data), np.array(data.targets), tuple(data.classes)
