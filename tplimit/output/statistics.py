"""Statistics of networks by width: powers of the width, fits in 1/n, differences in errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tplimit.output.estimates import mean, quiet, standard_error

__all__ = [
    "PowerFit",
    "intercept_weights",
    "jackknife_variance",
    "log_root",
    "mean_squares",
    "normal_deviate",
    "power",
    "root",
    "root_error",
    "weighted_power",
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
    x, logs, variances = _logarithms(squares)
    weights = _slope_weights(x, np.ones_like(logs))
    return np.sum(weights * logs, axis=0), np.sqrt(np.sum(weights**2 * variances, axis=0))


class PowerFit(NamedTuple):
    """A fitted exponent, entry by entry.

    Attributes:
        exponent: of n in the root mean square.
        stderr: its standard error, from those of the points.
        degrees: of freedom of the error.
        p: of the chi-square test of the fit, the probability that sizes which follow a power lie
            farther from the line; NaN of two widths and of points without an error.
    """

    exponent: np.ndarray
    stderr: np.ndarray
    degrees: np.ndarray
    p: np.ndarray


def weighted_power(squares: Mapping[int, np.ndarray], typical: bool = False) -> PowerFit:
    """The exponent of `power`, its points weighted by their errors, and a test of the fit.

    Weights are the inverse variances of the logarithms of the root mean squares, by a jackknife
    over seeds; equal where a variance is 0 or not known. That they are estimates, with one degree
    of freedom less than seeds, enters the error (Meier, Biometrics 9, 1953; degrees of freedom by
    Satterthwaite), and the chi-square of the residuals, which is compared with an F distribution
    (Johansen, Biometrika 67, 1980; Welch's test where a constant is fitted). Of a heavy tail a
    width that has missed it counts for too much all the same.

    Args:
        squares: by width, arrays (seeds, ...).
        typical: of the geometric mean over seeds in place of the root mean square.

    >>> fit = weighted_power({n: n**-1.0 * np.array([1.0, 1.1, 0.9]) for n in (64, 256, 1024)})
    >>> float(fit.exponent.round(12)), float(fit.stderr.round(3)), float(fit.degrees.round(6))
    (-0.5, 0.017, 4.0)
    """
    x, logs, variances = _logarithms(squares, typical)
    usable = np.all(np.isfinite(variances) & (variances > 0), axis=0)
    dof = np.array([len(s) - 1 for s in squares.values()]).reshape(x.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(usable, 1 / variances, 1.0)
        weights = _slope_weights(x, precision)
        exponent = np.sum(weights * logs, axis=0)
        share = precision / np.sum(precision, axis=0)
        residuals = logs - exponent * x
        residuals = residuals - np.sum(share * residuals, axis=0)
        # One less the leverage of a point: how much of its error is left in its residual.
        left = 1 - share - weights * (x - np.sum(share * x, axis=0))
        terms = weights**2 * variances * (1 + 4 * left / dof)
        degrees = np.sum(terms, axis=0) ** 2 / np.sum(terms**2 / dof, axis=0)
        chi_square = np.where(usable, np.sum(precision * residuals**2, axis=0), np.nan)
        p = _survival(chi_square, len(squares) - 2, np.sum(left**2 / dof, axis=0))
    return PowerFit(exponent, np.sqrt(np.sum(terms, axis=0)), degrees, p)


def _survival(chi_square: np.ndarray, count: int, excess: np.ndarray) -> np.ndarray:
    """Probability of a larger chi-square of so many degrees of freedom, of estimated variances."""
    from scipy import stats  # slow to import

    if count < 1:
        return np.full_like(chi_square, np.nan)
    scale = count + 2 * excess - 6 * excess / (count + 2)
    return np.asarray(stats.f.sf(chi_square / scale, count, count * (count + 2) / (3 * excess)))


def _logarithms(
    squares: Mapping[int, np.ndarray], typical: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the widths, of the root mean squares, and the latters' variances: axis 0 is the width."""
    values = list(squares.values())
    if typical:
        entries = [_log_roots(v) for v in values]
        logs = np.stack([mean(v) for v in entries])
        variances = np.stack([standard_error(v) ** 2 for v in entries])
    else:
        logs = np.stack([log_root(v) for v in values])
        variances = np.stack([jackknife_variance(v) for v in values])
    x = np.log(np.array(list(squares), dtype=float))
    return x.reshape(-1, *[1] * (logs.ndim - 1)), logs, variances


@quiet
def log_root(squares: np.ndarray) -> np.ndarray:
    """½ log(mean(squares)) over the first axis; NaN where it is not finite."""
    return _log_roots(np.mean(squares, axis=0))


def _log_roots(squares: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = 0.5 * np.log(squares)
    return np.where(np.isfinite(logs), logs, np.nan)


def _slope_weights(x: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The slope of y against x, of points of this precision, is the sum of these weights times y.

    NaN of one point.
    """
    x = x - np.sum(precision * x, axis=0) / np.sum(precision, axis=0)
    weights = precision * x
    return weights / np.sum(weights * x, axis=0) if len(x) > 1 else np.full(weights.shape, np.nan)


@quiet
def jackknife_variance(squares: np.ndarray) -> np.ndarray:
    """Variance of ½ log(mean(squares)), from leaving out one seed at a time; NaN of one seed."""
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


def normal_deviate(difference: Any, terms: Sequence[tuple[Any, float]]) -> np.ndarray:
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
