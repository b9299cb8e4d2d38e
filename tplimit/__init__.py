"""tplimit: the infinite-width limit of neural networks as a JAX transformation."""

from tplimit import rules as rules
from tplimit.errors import (
    CancellationError,
    DivergenceError,
    LimitError,
    NoLimitError,
    UnsupportedOperationError,
    WidthError,
)
from tplimit.interpret import RULES
from tplimit.sampling import Deferred, full, inf, normal, rademacher, sample, uniform
from tplimit.transforms import Leading, leading, limit
from tplimit.widths import Scale, Width

__version__ = "0.1.0"

__all__ = [
    "RULES", "CancellationError", "Deferred", "DivergenceError", "Leading", "LimitError",
    "NoLimitError", "Scale", "UnsupportedOperationError", "Width", "WidthError", "full", "inf",
    "leading", "limit", "normal", "rademacher", "sample", "uniform",
]  # fmt: skip
