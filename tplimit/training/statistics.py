"""Statistics of networks by width: powers of the width, fits in 1/n, differences in errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tplimit.output.estimates import quiet

__all__ = [
    "intercept_weights",
    "mean_squares",
    "normal_deviate",
    "power",
    "root",
    "root_error",
    "z_summary",
]


@quiet
def root(squares: Any) -> Any:
    """Root of unbiased squares; 0 where one is not positive, as the distance is below the noise."""
    roots = np.sqrt(np.maximum(squares, 0.0))
    return roots if np.ndim(roots) else float(roots)


@quiet
def root_error(squares: np.ndarray) -> Any:
    """Standard error of the root of the mean of squares over the first axis, by the delta method.

    NaN for one square, and where the mean is not positive.
    """
    middle = root(np.mean(squares, axis=0))
    if len(squares) < 2:
        return np.full_like(middle, np.nan)[()]
    error = np.std(squares, axis=0, ddof=1) / np.sqrt(len(squares))
    with np.errstate(divide="ignore"):
        found = np.where(middle > 0, error / (2 * middle), np.nan)
    return found if found.ndim else float(found)


@quiet
def mean_squares(leaf: np.ndarray) -> np.ndarray:
    """Per seed and step, the mean squared modulus of the entries of a record."""
    squares = np.abs(leaf.astype(np.result_type(leaf.dtype, float))) ** 2
    return np.mean(squares.reshape(*leaf.shape[:2], -1), axis=2)


def power(squares: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares exponent of n in the root mean square over the first axis, and its error.

    The exponent is linear in the logarithms, and the seeds of different widths are independent, so
    the variances of the logarithms, each by a jackknife over seeds, add up with the squares of the
    fit's weights. NaN of one width, where a mean is not positive, and where a square is not finite;
    the error is NaN of one seed, too.

    >>> exponent, error = power({n: np.full((2, 1), n**-1.5) for n in (64, 256)})
    >>> exponent.round(12).tolist(), error.tolist()
    ([-0.75], [0.0])
    """
    weights = _slope_weights(squares)
    logs = np.stack([_log_roots(_mean(x)) for x in squares.values()])
    variances = np.stack([_jackknife_variance(x) for x in squares.values()])
    return np.tensordot(weights, logs, 1), np.sqrt(np.tensordot(weights**2, variances, 1))


@quiet
def _mean(squares: np.ndarray) -> np.ndarray:
    return np.mean(squares, axis=0)


def _log_roots(squares: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = 0.5 * np.log(squares)
    return np.where(np.isfinite(logs), logs, np.nan)


def _slope_weights(widths: Any) -> np.ndarray:
    """The slope of y against log(width) is this vector times y."""
    x = np.log(np.array(list(widths), dtype=float))
    x = x - np.mean(x)
    return x / np.sum(x**2) if len(x) > 1 else np.full(len(x), np.nan)


@quiet
def _jackknife_variance(squares: np.ndarray) -> np.ndarray:
    """Variance of ½ log(mean(squares)), from leaving out one seed at a time."""
    count = len(squares)
    if count < 2:
        return np.full(squares.shape[1:], np.nan)
    logs = _log_roots((np.sum(squares, axis=0) - squares).clip(0) / (count - 1))
    variance = (count - 1) * np.var(logs, axis=0)
    return np.where(np.all(np.isfinite(squares), axis=0), variance, np.nan)


def intercept_weights(widths: Sequence[int]) -> dict[int, float]:
    """The intercept of a fit f + b/n with weights n is the sum of these times the values."""
    n = np.array(widths, dtype=float)
    design = np.stack([np.ones_like(n), 1 / n], axis=1)
    weighted = design * n[:, None]
    first = np.linalg.solve(design.T @ weighted, weighted.T)[0]
    return dict(zip(widths, first.tolist(), strict=True))


def normal_deviate(difference: np.ndarray, terms: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Difference over its standard error, by Welch's t, as a standard normal deviate.

    `terms` are independent contributions to the variance with their degrees of freedom.
    """
    from scipy import stats  # slow to import

    variance = sum(term for term, _ in terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(difference) / np.sqrt(variance)
        degrees = variance**2 / sum(term**2 / dof for term, dof in terms if dof > 0)
        z = np.sign(difference) * stats.norm.isf(stats.t.sf(t, degrees))
    z = np.where(variance > 0, z, np.copysign(np.inf, difference))
    z = np.where(np.isfinite(difference) & np.isfinite(variance), z, np.nan)
    return np.where(difference == 0, 0.0, z)


def z_summary(tree: Any) -> dict[str, Any]:
    """Largest |z|, share below 2 (95.4 % expected), and number, of the entries with an error.

    Entries that agree exactly, such as a function that starts at 0 by construction, are no test
    of anything and are left out.
    """
    leaves = [np.abs(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    z = np.concatenate(leaves) if leaves else np.zeros(0)
    z = z[~np.isnan(z) & (z != 0)]
    if not len(z):
        return {"max": np.nan, "below_2": np.nan, "count": 0}
    return {"max": float(np.max(z)), "below_2": float(np.mean(z < 2)), "count": len(z)}
