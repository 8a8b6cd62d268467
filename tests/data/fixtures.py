"""Image folders drawn on the fly, for the tests of the loaders."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data.draws import MEAN, STD
from pipeline.data.image import unreadable
from pipeline.data.loader_stream import FolderLoader
from pipeline.data.tree import ImageFolder, scan
from pipeline.run.files import open_file

CPU = torch.device("cpu")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """Slow waves, different ones in each channel, direction and seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    wave = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.1, 0.1, (3, 3))]
    return Image.fromarray((127.5 + 127 * np.stack(wave, axis=2)).astype(np.uint8))


def plain(number: int, height: int = 12, width: int = 15) -> Image.Image:
    """One colour that tells the number (below 256), whatever is cropped, flipped or resized."""
    return Image.new("RGB", (width, height), (number, 255 - number, number // 2))


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of the ``plain`` images in a batch."""
    red = images[:, 0].double().mean(dim=(1, 2)) * STD[0] + MEAN[0]
    return (red * 255).round().int().tolist()


def plain_folder(root: Path, split: str, count: int, classes: int = 3) -> ImageFolder:
    """``count`` plain images; the number of an image is its index in the folder."""
    for number, label in enumerate(np.sort(np.arange(count) % classes)):
        folder = root / split / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        plain(number).save(folder / f"{number:03}.png")
    return scan(root, split)


def cifar_tree(root: Path, more_tests: int = 0) -> Path:
    """40 training and 12 test images of 2 classes, 32x32, told apart by their brightness;
    ``more_tests`` of the dark ones."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for label, low in (("dark", 0), ("light", 120)):
            (root / split / label).mkdir(parents=True)
            more = more_tests if (split, label) == ("test", "dark") else 0
            for i in range(count + more):
                pixels = rng.integers(low, low + 130, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def image_folder(root: Path, split: str, images: dict[str, Image.Image | bytes]) -> ImageFolder:
    """One class of images under the given names; JPEGs are saved at full quality."""
    folder = root / split / "class"
    folder.mkdir(parents=True)
    for name, image in images.items():
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name, quality=100)
    return scan(root, split)


def make(kind: type[FolderLoader], folder: ImageFolder, **options) -> FolderLoader:
    """A loader of small training images; ``options`` replace these settings."""
    settings = {
        "batch_size": 4,
        "train": True,
        "size": 8,
        "resize": 10,
        "min_area": 0.08,
        "augment": True,
        "seed": 1,
        "workers": 0,
        "dtype": torch.float32,
        "device": CPU,
    }
    return kind(folder, **{**settings, **options})


def refusal(path: Path | str) -> str | None:
    """Why an image file cannot be read, or None if it can."""
    return unreadable(partial(open_file, str(path)))


def levels(images: torch.Tensor) -> np.ndarray:
    """The pixels of a batch, undone the normalisation: (N, H, W, 3) on the scale 0..255."""
    nhwc = images.permute(0, 2, 3, 1).cpu().double()
    return ((nhwc * torch.tensor(STD) + torch.tensor(MEAN)) * 255).numpy()
