"""Kernels of infinitely wide networks, and training with them in function space."""

from tplimit.kernels.grams import gram
from tplimit.kernels.training import KernelRun, train

__all__ = ["KernelRun", "gram", "train"]
