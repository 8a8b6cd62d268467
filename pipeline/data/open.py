"""From a config to its loaders. A data set or a loader is added by a line in a registry here."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.data import exclude, synthetic
from pipeline.data.batch import fit_batch, pieces_of
from pipeline.data.loader import Loader, image_dtype
from pipeline.data.shards import is_sharded, scan_shards
from pipeline.data.tree import ImageFolder, Scan, check_classes, scan, scan_train_val
from pipeline.data.workers import limit_workers
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.errors import UserError

# Opens the named splits, of "train" and "val", of the data set that a config describes.
Opener = Callable[[Config, torch.device, Sequence[str]], list[Loader]]


def build_loaders(config: Config, device: torch.device) -> tuple[Loader, Loader]:
    """The training and the evaluation loader of ``config``.

    Raises UserError, in all processes, for whatever is wrong with the data or with how the config
    uses them.
    """
    # The main process draws, decodes and caches for all.
    train, val = processes.main_first(lambda: _open(config, device, ("train", "val")))
    processes.alike(lambda: check_classes(config, train.classes))
    if not processes.is_same_everywhere((train.fingerprint, val.fingerprint)):
        raise UserError(
            f"data.path={config.data.path} and data.exclude={config.data.exclude} are not the same "
            "images in all processes; give every machine the same data and the same list"
        )
    return train, val


def build_eval_loader(config: Config, device: torch.device) -> Loader:
    """The evaluation loader alone; the training images are not touched."""
    return _open(config, device, ("val",))[0]


def settle_data(config: Config, train: Loader) -> Config:
    """``config`` with what the training images decide: the number of classes, and a batch size that
    they fill."""
    batch = train.images // len(train)
    return config.changed({"model.num_classes": len(train.classes), "data.batch_size": batch})


def _open(config: Config, device: torch.device, splits: Sequence[str]) -> list[Loader]:
    openers = {name: dataset.opener for name, dataset in DATASETS.items()}
    opener: Opener = _look_up("data.dataset", config.data.dataset, openers)
    return opener(limit_workers(config), device, splits)


def open_tree(config: Config, device: torch.device, splits: Sequence[str]) -> list[Loader]:
    """The loaders of an image tree: ``data.path`` holds train/ and val/ with class folders."""
    if config.data.path is None:
        raise UserError(
            "data.path is not set: give the folder that holds train/ and val/ (make DATA=)"
        )
    return _open_folders(Path(config.data.path), config, device, splits)


def open_synthetic(config: Config, device: torch.device, splits: Sequence[str]) -> list[Loader]:
    """The loaders of the drawn data set; it is drawn first where ``data.path`` is not set."""
    if config.data.path is not None:
        return _open_folders(Path(config.data.path), config, device, splits)
    root = synthetic.default_root()
    exclude.read(config.data.exclude, "train", root)  # a wrong list is told before it draws
    synthetic.draw(root)
    return _open_folders(root, config, device, splits)


def _open_folders(
    root: Path, config: Config, device: torch.device, splits: Sequence[str]
) -> list[Loader]:
    excluded, scan = config.data.exclude, scan_of(config.data.format, root)
    if list(splits) == ["val"]:
        return [open_folder(scan(root, "val", excluded, None), config, device, train=False)]
    check = partial(check_classes, config)
    train, val = scan_train_val(root, excluded, check, scan)
    return [
        open_folder(train, config, device, train=True),
        open_folder(val, config, device, train=False),
    ]


def scan_of(choice: str, root: Path) -> Scan:
    """What lists the images in ``root``, which lie there as ``data.format`` says."""
    if choice == "auto":
        choice = "webdataset" if is_sharded(root) else "folder"
    found: Scan = _look_up("data.format", choice, FORMATS, "auto")
    return found


def open_folder(
    folder: ImageFolder, config: Config, device: torch.device, *, train: bool
) -> Loader:
    """The loader of a scanned image folder that ``data.loader`` asks for."""
    data = config.data
    batch = data.eval_batch_size
    if train:
        batch = fit_batch(data.batch_size, len(folder.files), pieces_of(config))
    return _loader_class(data.loader)(
        folder,
        batch_size=batch,
        train=train,
        size=data.size,
        resize=data.resize,
        min_area=data.min_area,
        augment=data.augment,
        seed=config.seed,
        workers=data.workers,
        dtype=image_dtype(config.train.precision, device),
        device=device,
        hw_decoder_load=data.hw_decoder_load,
        size_of=config.train_side if train else None,
    )


@dataclass(frozen=True)
class DataSet:
    """A kind of data set: what opens it, or where to find that, "module:name", so that only what is
    in use is imported; and whether its images lie on the training device (``is_resident``).

    ``side`` is that of its images in pixels where ``data.size`` does not say it, and ``classes``
    how many it has as published, where that is known.
    """

    opener: Opener | str
    is_resident: bool = False
    side: int | None = None
    classes: int | None = None


CIFAR = "pipeline.data.loader_resident:open_cifar"
DATASETS = {
    "cifar10": DataSet(CIFAR, is_resident=True, side=32, classes=10),
    "cifar100": DataSet(CIFAR, is_resident=True, side=32, classes=100),
    "imagenet": DataSet(open_tree, classes=1000),
    "synthetic": DataSet(open_synthetic, classes=len(synthetic.SHAPES)),
}
# How the images of a tree may lie, and what lists them.
FORMATS: dict[str, Scan] = {"folder": scan, "webdataset": scan_shards}
# The loaders of image trees, or where to find them; data.loader=auto takes the first that can be
# imported.
LOADERS: dict[str, Callable[..., Loader] | str] = {
    "dali": "pipeline.data.loader_dali:DaliLoader",
    "torchvision": "pipeline.data.loader_torchvision:TorchvisionLoader",
}


def expected_images(config: Config) -> tuple[int, int | None]:
    """The side in pixels of the images that a training would see, and the number of classes that
    the data set is known for. No data are looked at."""
    dataset: DataSet = _look_up("data.dataset", config.data.dataset, DATASETS)
    return dataset.side or config.data.size, dataset.classes


def train_sides(config: Config) -> tuple[int, ...]:
    """The sides in pixels of the images that a training sees, one after the other."""
    side = DATASETS[config.data.dataset].side
    return (side,) if side else config.train_sides


def _loader_class(choice: str) -> Callable[..., Loader]:
    if choice != "auto":
        return _look_up("data.loader", choice, LOADERS, "auto")
    *fast, last = LOADERS
    for name in fast:
        try:
            return _resolve(LOADERS[name])
        except ImportError:
            continue
    return _look_up("data.loader", last, LOADERS)


def _look_up(key: str, name: str, registry: dict[str, Any], *further: str) -> Any:
    if name not in registry:
        raise UserError(f"{key} is {name!r}; choose one of {', '.join((*further, *registry))}")
    try:
        return _resolve(registry[name])
    except ImportError as error:
        raise UserError(
            f"{key}={name}, but what it needs cannot be imported ({error}); make setup installs "
            f"it, or take another of {', '.join(registry)}"
        ) from None


def _resolve(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
