"""How each image is cropped and flipped: pure functions of (seed, epoch, index).

Nothing here has a state. So resuming needs none, the number of workers or processes changes
nothing, and every loader that uses these functions sees the same pixels.
"""

import numpy as np
import numpy.typing as npt
import torch

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's red, green and blue, for pixels from 0 to 1

STD = (0.229, 0.224, 0.225)

ATTEMPTS = 10  # rectangles that random_resized_crop tries before it takes the central one

CROP_UNIFORMS = 2 * ATTEMPTS + 2  # areas, aspects, and where to put the window

FLIP_COLUMN = CROP_UNIFORMS  # the image is mirrored where this uniform is below 1/2

Floats = npt.NDArray[np.float64]

Ints = npt.NDArray[np.int64]

MIXUP, JITTER = -1, -2  # stand for an epoch in the keys of what is drawn by step and not by image

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's constants as signed 64-bit integers

_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def uniforms(seed: int, epoch: int, index: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform random numbers in [0, 1), (N, count) float64, for integers ``index`` (N,).

    Element (i, k) depends on ``seed``, ``epoch``, ``index[i]`` and ``k`` alone: it is element
    ``k`` of the splitmix64 stream that starts at a hash of the first three (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014). Torch operators only, and no
    synchronisation with the device.
    """
    return uniforms_of(key_of(seed, epoch), index, count)


def key_of(seed: int, epoch: int) -> int:
    """What ``uniforms_of`` needs to know of ``seed`` and ``epoch``; computed on the host."""
    return int(_mix(_mix(torch.tensor(seed)) + epoch))


def uniforms_of(key: int, index: torch.Tensor, count: int) -> torch.Tensor:
    """``uniforms`` of the seed and epoch that ``key_of`` made ``key`` of."""
    start = _mix(index.to(torch.int64) * _GOLDEN + key)
    step = torch.arange(1, count + 1, device=index.device) * _GOLDEN
    bits = _shift(_mix(start[:, None] + step), 11)
    return bits.to(torch.float64) * 2.0**-53


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser, a bijection of the 64-bit integers; products wrap around."""
    for bits, factor in _FACTORS:
        x = (x ^ _shift(x, bits)) * factor
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def crop_sides(u: Floats, min_area: float) -> Floats:
    """Height and width of every attempt in units of sqrt(image area), (N, ATTEMPTS, 2).

    ``u``: (N, CROP_UNIFORMS or more) uniforms. The area is uniform in [min_area, 1], the aspect
    (width / height) log-uniform in [3/4, 4/3].
    """
    area = min_area + (1 - min_area) * u[:, :ATTEMPTS]
    aspect = (4 / 3) ** (2 * u[:, ATTEMPTS : 2 * ATTEMPTS] - 1)
    return np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=-1)


def crop_place(u: Floats) -> Floats:
    """Where the window lies between top and bottom and between left and right, (N, 2)."""
    return u[:, 2 * ATTEMPTS : CROP_UNIFORMS]


def random_resized_crop(u: Floats, height: Ints, width: Ints, min_area: float = 0.08) -> Ints:
    """Windows (N, 4) int64: top, left, height, width, in pixels, by torchvision's law.

    ``u``: (N, CROP_UNIFORMS or more) uniforms; ``height``, ``width``: (N,) of the images. The
    first of ten rectangles that fits is placed uniformly; if none fits, the largest central
    window of an aspect in [3/4, 4/3] is taken (torchvision.transforms.RandomResizedCrop).
    """
    size = np.stack([height, width], axis=-1).astype(np.float64)
    root = np.sqrt(size[:, 0] * size[:, 1])
    drawn = np.floor(crop_sides(u, min_area) * root[:, None, None] + 0.5)
    fits = ((drawn > 0) & (drawn <= size[:, None])).all(axis=-1)
    first = drawn[np.arange(len(u)), fits.argmax(axis=1)]
    central = np.minimum(size, np.floor(size[:, ::-1] * 4 / 3 + 0.5))
    found = np.any(fits, axis=1, keepdims=True)
    shape = np.where(found, first, central)
    placed = np.floor(crop_place(u) * (size - shape + 1))
    start = np.where(found, placed, np.floor((size - shape) / 2))
    return np.concatenate([start, shape], axis=1).astype(np.int64)
