"""Numbers measured by sampling, with standard errors: means, fits, jackknife estimates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tplimit.output.estimates import mean, standard_error, t_quantile
from tplimit.output.statistics import weighted_power

__all__ = ["LEVEL", "Measurement", "average", "combination", "jackknife", "power_law"]

LEVEL = 0.95


@dataclass(frozen=True)
class Measurement:
    """An estimate, its standard error, and the degrees of freedom of the error.

    Attributes:
        value: a finite number.
        stderr: None if it is not known, as of one network; never 0 for want of an error.
        degrees: of freedom of the error: seeds less one, or those of a sum of errors.
        p: of the chi-square test of the fit that the number comes from; None without one.

    Raises:
        ValueError: the value is not finite, or an error is neither None nor a finite number.

    >>> Measurement(0.5, 0.01, 4) - Measurement(0.3, 0.01, 4)
    Measurement(value=0.2, stderr=0.0141..., degrees=8.0, p=None)
    """

    value: float
    stderr: float | None
    degrees: float | None
    p: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "stderr", "degrees", "p"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if not math.isfinite(number):
                raise ValueError(f"{name} has to be a finite number, not {number}")
            object.__setattr__(self, name, float(number))
        if (self.stderr is None) != (self.degrees is None):
            raise ValueError("a standard error has degrees of freedom")

    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval by Student's t; infinite if the error is not known."""
        if self.stderr is None or self.degrees is None:
            return -math.inf, math.inf
        half = t_quantile((1 + LEVEL) / 2, self.degrees) * self.stderr
        return self.value - half, self.value + half

    def __sub__(self, other: "Measurement") -> "Measurement":
        """The difference from an independent one."""
        return combination((1.0, -1.0), (self, other))

    def __abs__(self) -> "Measurement":
        """The absolute value, of the same error: for numbers that are far from 0, or bounded."""
        return Measurement(abs(self.value), self.stderr, self.degrees, self.p)


def combination(weights: Sequence[float], parts: Sequence[Measurement]) -> Measurement:
    """The sum of weights times independent measurements.

    Degrees of freedom by Welch and Satterthwaite. The error is not known where a part has none.
    """
    value = sum(w * m.value for w, m in zip(weights, parts, strict=True))
    known = [(m.stderr, m.degrees) for m in parts if m.stderr is not None and m.degrees is not None]
    if len(known) < len(parts):
        return Measurement(value, None, None)
    terms = [(w * stderr) ** 2 for w, (stderr, _) in zip(weights, known, strict=True)]
    # Where nothing scatters there is no error to speak of, and any degrees of freedom will do.
    shares = [t / (sum(terms) or 1.0) for t in terms]
    spread = sum(share**2 / degrees for share, (_, degrees) in zip(shares, known, strict=True))
    degrees = 1 / spread if spread else min(degrees for _, degrees in known)
    return Measurement(value, math.sqrt(sum(terms)), degrees)


def average(values: Any) -> Measurement:
    """The mean of independent numbers, one per seed or replicate; of one the error is not known.

    >>> average([0.52, 0.54, 0.53, 0.53])
    Measurement(value=0.53, stderr=0.00408..., degrees=3.0, p=None)
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return Measurement(float(mean(values)), None, None)
    return Measurement(float(mean(values)), float(standard_error(values)), len(values) - 1)


def power_law(sizes: Mapping[int, Any], typical: bool = False) -> Measurement:
    """The exponent of the root mean square of sizes over seeds, against width.

    Least squares of its logarithm, weighted by the errors of the points, and the chi-square test of
    the fit; see `output.statistics.weighted_power`. The error is not known where a width has one
    seed.

    Args:
        sizes: by width, one size per seed.
        typical: of the geometric mean over seeds, which tails do not move.

    >>> power_law({n: [0.9 * n**-0.5, 1.1 * n**-0.5] for n in (64, 256)}).value
    -0.5...
    """
    squares = {n: np.asarray(values, float) ** 2 for n, values in sizes.items()}
    fit = weighted_power(squares, typical)
    exponent, stderr, degrees, p = map(float, fit)
    fewest = min(map(len, squares.values())) - 1
    if not fewest:
        return Measurement(exponent, None, None)
    # Where all seeds are alike the error is 0, and has no degrees of freedom of its own.
    return Measurement(
        exponent, stderr, degrees if stderr else fewest, None if math.isnan(p) else p
    )


def jackknife(
    statistic: Callable[..., float], *groups: tuple[np.ndarray, ...], at: float | None = None
) -> Measurement:
    """A statistic of independent groups of runs, its error from leaving out one run at a time.

    Args:
        statistic: of the groups.
        groups: tuples of arrays whose first axis is the seed; those of one group share their seeds.
        at: the value of the statistic, where it is known from more runs than these.
    """
    parts = []
    value = statistic(*groups) if at is None else at
    for g, group in enumerate(groups):
        count = len(group[0])
        left = [
            statistic(*groups[:g], tuple(np.delete(a, i, axis=0) for a in group), *groups[g + 1 :])
            for i in range(count)
        ]
        parts.append(Measurement(0.0, math.sqrt((count - 1) * np.var(left)), count - 1))
    # The statistic, and the errors that its groups add to it.
    both = combination([1.0] * len(parts), parts)
    return Measurement(value, both.stderr, both.degrees)
