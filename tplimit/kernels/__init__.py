"""Kernels of infinitely wide networks, and training with them in function space."""

from tplimit.kernels.flows import flow
from tplimit.kernels.grams import gram
from tplimit.kernels.processes import Posterior, ensemble, posterior
from tplimit.kernels.runs import Ensemble, KernelRun
from tplimit.kernels.training import train

__all__ = ["Ensemble", "KernelRun", "Posterior", "ensemble", "flow", "gram", "posterior", "train"]
