"""tplimit: the infinite-width limit of neural networks as a JAX transformation."""

from tplimit import kernels as kernels, parameterizations as parameterizations, rules as rules
from tplimit.arguments import Deferred, inf
from tplimit.checkpoint import Checkpoint
from tplimit.comparison import Comparison, compare
from tplimit.errors import (
    ActivationError,
    CancellationError,
    DivergenceError,
    LimitError,
    LimitWarning,
    NoLimitError,
    UnsupportedOperationError,
    WidthError,
)
from tplimit.inspection import classify_step
from tplimit.kernels import nngp, ntk
from tplimit.models import Model, mlp
from tplimit.parameterizations import Parameterization
from tplimit.parameters import full, normal, rademacher, uniform
from tplimit.regimes import Regime, classify
from tplimit.sampling import sample
from tplimit.table import rule
from tplimit.training import train
from tplimit.trajectory import Trajectory
from tplimit.transforms import Leading, Series, leading, limit, series
from tplimit.widths import Scale, Width

__version__ = "0.1.0"

__all__ = [
    "ActivationError",
    "CancellationError",
    "Checkpoint",
    "Comparison",
    "Deferred",
    "DivergenceError",
    "Leading",
    "LimitError",
    "LimitWarning",
    "Model",
    "NoLimitError",
    "Parameterization",
    "Regime",
    "Scale",
    "Series",
    "Trajectory",
    "UnsupportedOperationError",
    "Width",
    "WidthError",
    "classify",
    "classify_step",
    "compare",
    "full",
    "inf",
    "kernels",
    "leading",
    "limit",
    "mlp",
    "nngp",
    "normal",
    "ntk",
    "parameterizations",
    "rademacher",
    "rule",
    "sample",
    "series",
    "train",
    "uniform",
]
