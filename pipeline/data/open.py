"""From a config to its loaders."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.loader_stream import FolderLoader
    from pipeline.data.tree import ImageFolder
from pipeline.data.loader import Loader


def build_loaders(config: Config, device: torch.device) -> tuple[Loader, Loader]:
    """The training and the evaluation loader of ``config``.

    Raises ``UserError`` for whatever is wrong with the data or with how the config uses them.
    """
    with processes.main_first():  # it draws, decodes and caches for all
        loaders = _build_loaders(config, device)
    _check_agreement(loaders, config)
    return loaders


def _check_agreement(loaders: tuple[Loader, Loader], config: Config) -> None:
    """Raise unless all processes, on whatever machines, found the same images."""
    text = "".join(loader.fingerprint for loader in loaders)
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    if not (processes.gather(mine) == mine).all():
        raise UserError(
            f"data.path={config.data.path} and data.exclude={config.data.exclude} are not the same "
            "images in all processes; give every machine the same data and the same list"
        )


def _build_loaders(config: Config, device: torch.device) -> tuple[Loader, Loader]:
    data = config.data
    if data.dataset == "cifar10":
        train, val = (
            _cifar_loader(config, device, train=split == "train") for split in ("train", "test")
        )
        return _checked(train, config), _checked(val, config)
    root = _tree(config)
    from pipeline.data.tree import scan_train_val

    folders = scan_train_val(root, config.data.exclude)
    return (
        _checked(open_folder(folders[0], config, device, train=True), config),
        _checked(open_folder(folders[1], config, device, train=False), config),
    )


def build_eval_loader(config: Config, device: torch.device) -> Loader:
    """The evaluation loader alone; the training images are not touched."""
    if config.data.dataset == "cifar10":
        return _checked(_cifar_loader(config, device, train=False), config)
    root = _tree(config)
    from pipeline.data.tree import scan

    folder = scan(root, "val", config.data.exclude)
    return _checked(open_folder(folder, config, device, train=False), config)


def _tree(config: Config) -> Path:
    from pipeline.data import synthetic

    if config.data.path is not None:
        return Path(config.data.path)
    if config.data.dataset == "synthetic":
        return synthetic.draw(synthetic.default_root())
    raise UserError("data.path is not set: give the folder that holds train/ and val/ (make DATA=)")


def _folder_loader(config: Config) -> "type[FolderLoader]":
    choice = config.data.loader
    if choice != "torchvision":
        try:
            from pipeline.data.loader_dali import DaliLoader

            return DaliLoader
        except ImportError as error:
            if choice == "dali":
                raise UserError(
                    f"data.loader=dali, but DALI cannot be imported ({error}); install "
                    "nvidia-dali-cuda130 or set data.loader=torchvision"
                ) from None
    from pipeline.data.loader_torchvision import TorchvisionLoader

    return TorchvisionLoader


def image_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What loaders deliver: half precision where the network casts anyway, fp64 to verify, else
    fp32."""
    if config.train.precision == "fp64":
        return torch.float64
    if device.type != "cuda" or config.train.precision == "fp32":
        return torch.float32
    is_resident = config.data.dataset == "cifar10"  # DALI gives no bf16
    return torch.bfloat16 if is_resident and config.train.precision == "bf16" else torch.float16


def open_folder(
    folder: "ImageFolder", config: Config, device: torch.device, *, train: bool
) -> Loader:
    """The loader of a scanned image folder that ``data.loader`` asks for."""
    data = config.data
    return _folder_loader(config)(
        folder,
        batch_size=data.batch_size if train else data.eval_batch_size,
        train=train,
        size=data.size,
        resize=data.resize,
        min_area=data.min_area,
        augment=data.augment,
        seed=config.seed,
        workers=data.workers,
        dtype=image_dtype(config, device),
        device=device,
    )


def _cifar_loader(config: Config, device: torch.device, *, train: bool) -> Loader:
    from pipeline.data.cifar_files import load_cifar10
    from pipeline.data.loader_resident import CifarLoader

    data = config.data
    path = None if data.path is None else Path(data.path)
    split = load_cifar10(
        path,
        split="train" if train else "test",
        download=data.download,
        excluded=data.exclude,
    )
    return CifarLoader(
        split,
        batch_size=data.batch_size if train else data.eval_batch_size,
        train=train,
        augment=data.augment,
        seed=config.seed,
        dtype=image_dtype(config, device),
        device=device,
    )


def _checked(loader: Loader, config: Config) -> Loader:
    count = len(loader.classes)
    if count != config.model.num_classes:
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but data.path={config.data.path} "
            f"has {count} classes; set model.num_classes={count}"
        )
    return loader
