"""The maths: binarization with its gradient estimators, signs as bits, and augmentation."""

from kernels.augmentation import crop_flip_normalize
from kernels.binarize import binarize
from kernels.estimators import ESTIMATORS, Estimator, get_estimator
from kernels.packing import pack, unpack

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "binarize",
    "crop_flip_normalize",
    "get_estimator",
    "pack",
    "unpack",
]
