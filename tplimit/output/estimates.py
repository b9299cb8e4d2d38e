"""Means over independent replicates, their standard errors and intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tplimit.output.numbers import shorthand

__all__ = ["Estimate", "formatted", "interval", "mean", "quiet", "standard_error", "t_quantile"]

# Runs that blow up have been warned of when they did; their statistics are NaN or infinite.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def mean(x: np.ndarray) -> np.ndarray:
    """Mean over the first axis, in double precision."""
    return np.mean(x, axis=0, dtype=np.result_type(x.dtype, np.float64))


@quiet
def standard_error(x: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis, `std / sqrt(R)`; NaN for R = 1."""
    if len(x) < 2:
        return np.full(x.shape[1:], np.nan)
    wide = x.astype(np.result_type(x.dtype, np.float64))
    return np.std(wide, axis=0, ddof=1) / np.sqrt(len(x))


def t_quantile(probability: float, degrees: float) -> float:
    """A quantile of Student's t."""
    from scipy import stats  # slow to import

    return float(stats.t.ppf(probability, degrees))


def interval(level: float, count: int) -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """From values of so many replicates, the lower and the upper end of a confidence interval.

    mean ± t_{R-1}((1 + level)/2)·stderr, NaN for one replicate.

    Raises:
        ValueError: `level` is not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level has to be between 0 and 1, got {level}")
    quantile = t_quantile((1 + level) / 2, count - 1) if count > 1 else np.nan

    def end(sign: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: mean(x) + sign * quantile * standard_error(x)

    return end(-1), end(1)


def formatted(x: np.ndarray, digits: int, latex: bool) -> Any:
    """Mean and standard error over the first axis as text: a string, or nested lists of them.

    Raises:
        TypeError: complex numbers.
    """
    if np.iscomplexobj(x):
        raise TypeError("format is for real numbers: return real and imaginary parts apart")
    # What has no error bar is printed in the precision that it has.
    exact = int if x.dtype.kind in "biu" else x.dtype.type
    found = [
        shorthand(value, stderr, digits, latex, exact)
        for value, stderr in zip(mean(x).flat, standard_error(x).flat, strict=True)
    ]
    return np.array(found, dtype=object).reshape(x.shape[1:]).tolist()


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """What a function of the state gives, for each of R replicates of a run: `run.evaluate(fn)`.

    Attributes:
        replicates: the tree that the function returned; leaves are NumPy arrays whose first axis
            is the replicate.
        exponents: powers of n of its leaves, as in `Trajectory.exponents`; 0 at integer widths.

    >>> import numpy as np
    >>> loss = Estimate(np.array([0.52, 0.54, 0.53, 0.53]), 0)
    >>> print(loss.mean, loss.stderr.round(4), loss.format())
    0.53 0.0041 0.530(4)
    """

    replicates: Any
    exponents: Any

    @property
    def count(self) -> int:
        """The number R of replicates."""
        leaves = jax.tree.leaves(self.replicates)
        return len(leaves[0]) if leaves else 0

    @property
    def mean(self) -> Any:
        """Mean over the replicates, float64 (complex128)."""
        return jax.tree.map(mean, self.replicates)

    @property
    def stderr(self) -> Any:
        """Standard error of the mean, `std / sqrt(R)`; NaN for one replicate."""
        return jax.tree.map(standard_error, self.replicates)

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Lower and upper ends of confidence intervals of the means, by Student's t.

        mean ± t_{R-1}((1 + level)/2)·stderr. NaN for one replicate.

        Raises:
            ValueError: `level` is not strictly between 0 and 1.
        """
        lower, upper = interval(level, self.count)
        return jax.tree.map(lower, self.replicates), jax.tree.map(upper, self.replicates)

    def format(self, *, digits: int = 1, latex: bool = False) -> Any:
        """Means with their standard errors as text, `-0.5226(2)`; see `Trajectory.format`."""
        return jax.tree.map(lambda x: formatted(x, digits, latex), self.replicates)

    def __repr__(self) -> str:
        return f"Estimate(replicates={self.count}, {self._shown()})"

    def _shown(self) -> str:
        means = jax.tree.map(lambda m: np.array2string(m, precision=6, threshold=8), self.mean)
        return str(means)
