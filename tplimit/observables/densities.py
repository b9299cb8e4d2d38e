"""Densities of what is distributed along a width, from arrays of particles or of units."""

from typing import Any

import numpy as np

from tplimit import arguments

__all__ = ["density"]

# More draws than this share at one place are an atom of the law.
_ATOM = 0.01


def density(
    draws: Any, at: Any = None, bandwidth: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Density of draws along the last axis, by a Gaussian kernel estimate.

        p(z) = mean_i N(z; draws_i, bandwidth²)

    Args:
        draws: (..., M), such as preactivations of one point from `tp.particles`, or those of
            networks; every row by itself, such as replicates (put draws of one layer for several
            points into several rows).
        at: the places (G,); by default 128 across all draws.
        bandwidth: by default Silverman's, ``0.9 min(std, IQR / 1.34) M^(-1/5)``, of all draws
            together, with M the length of one row. It blurs: two estimates to be compared, of a
            limit and of networks, are made with one bandwidth.

    Returns:
        The places (G,) and the densities (..., G). Rows that are replicates have the density
        ``values.mean(axis=0)`` with the standard error of a mean.

    Raises:
        ValueError: draws are not finite, too few, or many are equal: a law with an atom (dead
            units, what a ReLU returns, signs) has no density.

    Source: B. W. Silverman, *Density Estimation for Statistics and Data Analysis*, 1986.

    >>> z = np.random.default_rng(0).normal(size=(2, 4096))
    >>> at, p = density(z, at=[0.0, 1.0])
    >>> p.shape, np.allclose(p, [0.399, 0.242], atol=0.03)
    ((2, 2), True)
    """
    rows = np.asarray(arguments.numbers("draws", draws), float)
    if rows.ndim == 0 or rows.shape[-1] < 2 or rows.size == 0:
        raise ValueError(f"draws of shape {rows.shape} have less than two along the last axis")
    if not np.all(np.isfinite(rows)):
        raise ValueError("draws are not finite: there are NaN or infinite ones among them")
    _refuse_atoms(rows)
    if bandwidth is None:
        low, high = np.quantile(rows, [0.25, 0.75])
        spread = min(float(np.std(rows)), (high - low) / 1.34) or float(np.std(rows))
        width = 0.9 * spread * rows.shape[-1] ** -0.2
    else:
        width = arguments.positive("bandwidth", bandwidth)
    if at is None:
        places = np.linspace(rows.min() - 3 * width, rows.max() + 3 * width, 128)
    else:
        places = np.asarray(arguments.points("at", at), float)
    flat = rows.reshape(-1, rows.shape[-1])
    values = np.array([_estimate(row, places, width) for row in flat])
    return places, values.reshape(*rows.shape[:-1], len(places))


def _estimate(row: np.ndarray, places: np.ndarray, width: float) -> np.ndarray:
    heights = [np.exp(-0.5 * ((place - row) / width) ** 2).mean() for place in places]
    return np.array(heights) / (width * np.sqrt(2 * np.pi))


def _refuse_atoms(rows: np.ndarray) -> None:
    values, counts = np.unique(rows, return_counts=True)
    most = counts.argmax()
    if counts[most] > max(1, _ATOM * rows.size):
        raise ValueError(
            f"{counts[most] / rows.size:.0%} of the draws are {values[most]:.6g}: their law has no "
            "density there. Leave them out and say how many they are, draw a histogram, or look at "
            "what is before the activation"
        )
