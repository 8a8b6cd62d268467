"""The maths: binarization with its gradient estimators, and batch norm fused with it."""

from kernels.batchnorm import batch_statistics, norm_binarize, running_statistics
from kernels.binarize import binarize
from kernels.estimators import ESTIMATORS, Estimator, get_estimator
from kernels.weights import binarize_weights

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "batch_statistics",
    "binarize",
    "binarize_weights",
    "get_estimator",
    "norm_binarize",
    "running_statistics",
]
