"""Two samples of random records, of networks and of a random limit: do they have one law?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tplimit.output.estimates import quiet
from tplimit.output.statistics import normal_deviate, root

__all__ = ["Law", "compare_laws"]

_PERMUTATIONS = 499
#: An entry whose limit varies by less than this share of what networks do has a number as limit.
_FIXED = 0.1


@dataclass(frozen=True, eq=False)
class Law:
    """Networks of one width beside a random limit: S seeds against R replicates.

    Attributes:
        mean_z: a tree like the records: difference of the means in standard errors (Welch).
        covariance: distance of the covariance matrices of all entries, ‖C_n - C_inf‖ / ‖C_inf‖ in
            the Frobenius norm, both norms without bias; 0 where it is below the noise, NaN with
            fewer than 4 seeds or replicates. What is large in its own units counts most.
        covariance_p: p-value of that difference: how many of 499 permutations of all networks
            about their means show a larger one. With few networks it is an approximation.
        ks_p: a tree like the records: p-values of the two-sample Kolmogorov-Smirnov test; NaN
            where an entry is one and the same number everywhere, or is not finite.
        entries: how many entries have a p-value. Of these many p-values the smallest is below
            0.05 / entries with probability 0.05 at most where the laws agree.
        least_p: the smallest p-value that S and R can lead to.
        fixed: entries that vary in the limit less than a tenth of what networks do. The limit of
            an average is a number, not a law: such entries belong into a comparison of their own.
    """

    mean_z: Any
    covariance: float
    covariance_p: float
    ks_p: Any
    entries: int
    least_p: float
    fixed: int


@quiet
def compare_laws(finite: np.ndarray, limit: np.ndarray, tree: Any) -> Law:
    """The laws of two matrices (network, entry); `tree` turns a vector of entries into records."""
    seeds, replicates = len(finite), len(limit)
    known = np.all(np.isfinite(finite), axis=0) & np.all(np.isfinite(limit), axis=0)
    z = np.full(finite.shape[1], np.nan)
    covariance = covariance_p = math.nan
    fixed = 0
    if min(seeds, replicates) > 1:
        difference = np.mean(finite, axis=0) - np.mean(limit, axis=0)
        own, others = (np.var(x, axis=0, ddof=1) for x in (finite, limit))
        noise = [(own / seeds, seeds - 1), (others / replicates, replicates - 1)]
        z = normal_deviate(difference, noise)
        fixed = int(np.sum(others[known] < _FIXED**2 * own[known]))
    if min(seeds, replicates) > 3 and known.any():
        covariance, covariance_p = _covariances(finite[:, known], limit[:, known])
    p = np.full(finite.shape[1], np.nan)
    p[known] = _ks(finite[:, known], limit[:, known])
    return Law(
        mean_z=tree(z), covariance=covariance, covariance_p=covariance_p,
        ks_p=tree(p), entries=int(np.sum(~np.isnan(p))),
        least_p=min(1.0, 2 / math.comb(seeds + replicates, seeds)), fixed=fixed,
    )  # fmt: skip


def _ks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """P-values for each column; NaN where both samples are one number."""
    from scipy import stats  # slow to import

    together = np.sort(np.concatenate([a, b]), axis=0)
    below_a, below_b = (_counts(np.sort(x, axis=0), together) for x in (a, b))
    # The statistic times the sizes, an integer: equal ones, of which there are few, have one p.
    largest = np.max(np.abs(below_a * len(b) - below_b * len(a)), axis=0, initial=0)
    _, first, which = np.unique(largest, return_index=True, return_inverse=True)
    p = np.array([stats.ks_2samp(a[:, i], b[:, i]).pvalue for i in first])
    return np.where(together[0] == together[-1], np.nan, p[which])


def _counts(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """By column, how many of the sorted x are at most as large as each place."""
    columns = [np.searchsorted(own, places, "right") for own, places in zip(x.T, at.T, strict=True)]
    return np.array(columns, dtype=int).reshape(at.T.shape).T


def _covariances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The relative distance of two covariance matrices, and its p-value by permutations."""
    rows = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
    size = np.max(np.abs(rows))
    if size == 0:
        return math.nan, math.nan
    # Inner products of networks suffice, however many entries they have.
    gram = (rows / size) @ (rows / size).T
    square, norm = _squared_distance(gram, len(a))
    # About the mean of m networks each has lost a share 1/m of its variance.
    back = np.repeat([(len(x) / (len(x) - 1)) ** 0.5 for x in (a, b)], [len(a), len(b)])
    gram, draw, larger = gram * np.outer(back, back), np.random.default_rng(0), 0
    for _ in range(_PERMUTATIONS):
        order = draw.permutation(len(gram))
        larger += _squared_distance(gram[np.ix_(order, order)], len(a))[0] >= square
    relative = root(square / norm) if norm > 0 else math.nan
    return relative, (1 + larger) / (1 + _PERMUTATIONS)


def _squared_distance(gram: np.ndarray, first: int) -> tuple[float, float]:
    """|A - B|^2 and |B|^2 of the covariances of the first networks and of the others, unbiased."""
    a, b, cross = gram[:first, :first], gram[first:, first:], gram[:first, first:]
    cross = cross - cross.mean(axis=0) - cross.mean(axis=1, keepdims=True) + cross.mean()
    mixed = np.sum(cross**2) / ((len(a) - 1) * (len(b) - 1))
    norm = _squared_norm(b)
    return float(_squared_norm(a) + norm - 2 * mixed), norm


def _squared_norm(gram: np.ndarray) -> float:
    """Unbiased |C|^2 of the covariance of m >= 4 networks, from their inner products.

    The U-statistic of Chen, Zhang and Zhong (2010): sums over indices that are all different.
    """
    m = len(gram)
    apart = gram - np.diag(np.diag(gram))
    pairs = np.sum(apart**2)
    chains = np.sum(np.sum(apart, axis=0) ** 2) - pairs
    fours = np.sum(apart) ** 2 - 4 * chains - 2 * pairs
    two, three = m * (m - 1), m * (m - 1) * (m - 2)
    return float(pairs / two - 2 * chains / three + fours / (three * (m - 3)))
