"""The maths: binarization with its gradient estimators."""

from kernels.binarize import binarize
from kernels.estimators import ESTIMATORS, Estimator, get_estimator

__all__ = ["ESTIMATORS", "Estimator", "binarize", "get_estimator"]
