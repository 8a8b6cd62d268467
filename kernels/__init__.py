"""The maths: binarization with its gradient estimators, and signs as bits."""

from kernels.binarize import binarize
from kernels.estimators import ESTIMATORS, Estimator, get_estimator
from kernels.packing import pack, unpack

__all__ = ["ESTIMATORS", "Estimator", "binarize", "get_estimator", "pack", "unpack"]
