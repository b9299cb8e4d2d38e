"""tplimit: the infinite-width limit of neural networks as a JAX transformation."""

from tplimit import kernels, observables, parameterizations, rules  # noqa: F401  (rules enter themselves)
from tplimit.arguments import Deferred, inf
from tplimit.caching.disk import cache
from tplimit.declare.initialisers import declare
from tplimit.declare.parameters import (
    full,
    normal,
    orthogonal,
    rademacher,
    truncated_normal,
    uniform,
)
from tplimit.declare.widths import Scale, Width
from tplimit.errors import (
    ActivationError,
    CancellationError,
    DivergenceError,
    LimitError,
    LimitWarning,
    NoLimitError,
    RoomError,
    UnsupportedOperationError,
    WidthError,
)
from tplimit.interpreter.table import rule
from tplimit.kernels import nngp, ntk
from tplimit.networks.models import Model, mlp
from tplimit.output.citations import cite
from tplimit.output.estimates import Estimate
from tplimit.parameterizations import Parameterization
from tplimit.regimes.counted import Regime, classify
from tplimit.regimes.figures import plot_regimes
from tplimit.regimes.measured import classify_step
from tplimit.training.checkpoint import Checkpoint
from tplimit.training.compare import compare
from tplimit.training.comparison import Comparison
from tplimit.training.figures import plot_convergence, plot_curves
from tplimit.training.train import train
from tplimit.training.trajectory import Trajectory
from tplimit.transforms.limits import Leading, Series, leading, limit, series
from tplimit.transforms.particles import particles
from tplimit.transforms.sampling import sample

__version__ = "0.1.0"

__all__ = [
    "ActivationError",
    "CancellationError",
    "Checkpoint",
    "Comparison",
    "Deferred",
    "DivergenceError",
    "Estimate",
    "Leading",
    "LimitError",
    "LimitWarning",
    "Model",
    "NoLimitError",
    "Parameterization",
    "Regime",
    "RoomError",
    "Scale",
    "Series",
    "Trajectory",
    "UnsupportedOperationError",
    "Width",
    "WidthError",
    "cache",
    "cite",
    "classify",
    "classify_step",
    "compare",
    "declare",
    "full",
    "inf",
    "kernels",
    "leading",
    "limit",
    "mlp",
    "nngp",
    "normal",
    "ntk",
    "observables",
    "orthogonal",
    "parameterizations",
    "particles",
    "plot_convergence",
    "plot_curves",
    "plot_regimes",
    "rademacher",
    "rule",
    "sample",
    "series",
    "train",
    "truncated_normal",
    "uniform",
]


def __dir__() -> list[str]:
    """What users call; the packages beside it are the house, see CONTRIBUTING.md."""
    return sorted([*__all__, "__version__"])
