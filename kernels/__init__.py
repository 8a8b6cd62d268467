"""The maths: binarization, batch norm fused with it, signs as bits, augmentation, and the counts
of a training step."""

from kernels.convolution import convolve
from kernels.count import tally
from kernels.crop import crop_flip_normalize
from kernels.estimators import ESTIMATORS, Estimator, get_estimator
from kernels.norm import batch_statistics, norm_binarize, running_statistics
from kernels.packing import pack, unpack
from kernels.pool import norm_pool_binarize
from kernels.rprelu import norm_prelu_binarize
from kernels.sign import binarize
from kernels.transforms import TRANSFORMS, get_transform
from kernels.weights import binarize_weights, joined

__all__ = [
    "ESTIMATORS",
    "TRANSFORMS",
    "Estimator",
    "batch_statistics",
    "binarize",
    "binarize_weights",
    "convolve",
    "crop_flip_normalize",
    "get_estimator",
    "get_transform",
    "joined",
    "norm_binarize",
    "norm_pool_binarize",
    "norm_prelu_binarize",
    "pack",
    "running_statistics",
    "tally",
    "unpack",
]
