"""Statistics of comparisons: differences in units of their error, with a stated false-alarm rate.

Arrays of runs carry the seed on axis 0; everything else is treated entry by entry.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

SUITE_FALSE_ALARM = 1e-3
"""Probability that a correct library fails one statistical test function, by default."""


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


def standard_error(a: ArrayLike) -> Array:
    """Standard error of the mean over axis 0; NaN for a single run."""
    a = np.asarray(a, float)
    if len(a) < 2:
        return np.full(a.shape[1:], np.nan)
    return np.std(a, axis=0, ddof=1) / np.sqrt(len(a))


def z_score(a: ArrayLike, b: ArrayLike) -> Array:
    """Difference of means in standard errors, `(mean a - mean b) / hypot(se_a, se_b)` (Welch)."""
    difference = np.mean(a, axis=0) - np.mean(b, axis=0)
    return _ratio(difference, np.hypot(standard_error(a), standard_error(b)))


def z_score_to(a: ArrayLike, expected: ArrayLike, expected_error: ArrayLike = 0.0) -> Array:
    """Difference of the mean of `a` from a number of standard error `expected_error`."""
    difference = np.mean(a, axis=0) - np.asarray(expected, float)
    return _ratio(difference, np.hypot(standard_error(a), np.asarray(expected_error, float)))


def _ratio(difference: Array, error: Array) -> Array:
    """`difference / error`, with 0 / 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / error)


def threshold(
    comparisons: int, degrees: float | None = None, false_alarm: float = SUITE_FALSE_ALARM
) -> float:
    """Bound on `max |z|` over `comparisons`, exceeded with probability at most `false_alarm`.

    Bonferroni, valid under any dependence. `degrees` of freedom (seeds - 1) give Student's t, which
    matters with few seeds: 12 comparisons, false alarm 1e-3: 3.93 (normal), 6.05 (11 degrees).
    """
    level = false_alarm / comparisons / 2
    return float(stats.norm.isf(level) if degrees is None else stats.t.isf(level, degrees))


def ks_p_value(a: ArrayLike, b: ArrayLike) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test on scalar samples."""
    return float(stats.ks_2samp(np.ravel(a), np.ravel(b)).pvalue)


def variance_z_score(a: ArrayLike, b: ArrayLike, resamples: int = 500, seed: int = 0) -> Array:
    """Log ratio of variances over axis 0 in standard errors (bootstrap; no normality assumed)."""
    difference = _log_variance(a) - _log_variance(b)
    errors = [_bootstrap_error(x, resamples, seed + i) for i, x in enumerate((a, b))]
    return _ratio(difference, np.hypot(*errors))


def _log_variance(a: ArrayLike) -> Array:
    return np.log(np.var(np.asarray(a, float), axis=0, ddof=1))


def _bootstrap_error(a: ArrayLike, resamples: int, seed: int) -> Array:
    a = np.asarray(a, float)
    random = np.random.default_rng(seed)
    draws = [_log_variance(a[random.integers(len(a), size=len(a))]) for _ in range(resamples)]
    return np.std(draws, axis=0, ddof=1)


def covariance_z_score(a: ArrayLike, b: ArrayLike) -> Array:
    """Differences of all second central moments of (runs, k), in standard errors: (k, k)."""
    a, b = (np.asarray(x, float) - np.mean(x, axis=0) for x in (a, b))
    return z_score(a[:, :, None] * a[:, None, :], b[:, :, None] * b[:, None, :])


def rms(differences: ArrayLike) -> float:
    """Root mean square over everything."""
    return float(np.sqrt(np.mean(np.square(np.asarray(differences, float)))))


def log_log_slope(
    differences: Mapping[int, ArrayLike], resamples: int = 400, seed: int = 0
) -> Estimate:
    """Slope of log RMS(difference) against log width; error by bootstrap over the runs.

    `differences[width]` has runs on axis 0. The expected slope is -1/2 for fluctuations.
    """
    return _slope({n: np.asarray(d, float) for n, d in differences.items()}, rms, resamples, seed)


def bias_slope(
    differences: Mapping[int, ArrayLike], resamples: int = 400, seed: int = 0
) -> Estimate:
    """The same for the bias, RMS of the mean over runs: -1 for smooth stable programs.

    Meaningful only where the bias is well above its standard error at every width.
    """
    return _slope(
        {n: np.asarray(d, float) for n, d in differences.items()},
        lambda d: rms(np.mean(d, axis=0)),
        resamples,
        seed,
    )


def _slope(
    runs: Mapping[int, Array], size: Callable[[Array], float], resamples: int, seed: int
) -> Estimate:
    log_widths = np.log(list(runs))
    random = np.random.default_rng(seed)

    def fit(sample: Mapping[int, Array]) -> float:
        return float(np.polyfit(log_widths, [np.log(size(d)) for d in sample.values()], 1)[0])

    draws = [
        fit({n: d[random.integers(len(d), size=len(d))] for n, d in runs.items()})
        for _ in range(resamples)
    ]
    return Estimate(fit(runs), float(np.std(draws, ddof=1)))


def extrapolate(runs: Mapping[int, ArrayLike], power: float = 1.0) -> tuple[Array, Array]:
    """Fit `mean f_n = f + b / n^power` by weighted least squares: `f` and its standard error.

    For smooth stable programs the bias of a finite network is `b / n`, so `f` is the limit. Entries
    that do not vary between runs (all networks agree) are not allowed.
    """
    widths = np.array(list(runs), float)
    means = np.stack([np.mean(r, axis=0) for r in runs.values()])
    weights = np.stack([standard_error(r) for r in runs.values()]) ** -2
    inverse = (widths**-power).reshape(-1, *[1] * (means.ndim - 1))
    s0, s1, s2 = ((weights * inverse**k).sum(0) for k in range(3))
    t0, t1 = ((weights * means * inverse**k).sum(0) for k in range(2))
    determinant = s0 * s2 - s1**2
    return (s2 * t0 - s1 * t1) / determinant, np.sqrt(s2 / determinant)
