"""What is claimed beside what was measured, and the verdict that follows from the two."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tplimit.output.statistics import normal_deviate
from tplimit.reproduction.measurements import Measurement, power_law

__all__ = [
    "AGREES",
    "RULE",
    "Interval",
    "Row",
    "at_least",
    "at_most",
    "exponent_row",
    "number",
    "summary",
]

AGREES, WITHIN = "agrees", "within the tolerance but different"
FAILS, OPEN, UNKNOWN = "does not hold", "undecided", "error not known"
_WORDS = {
    AGREES: "agree",
    WITHIN: "are within the tolerance but different",
    FAILS: "do not hold",
    OPEN: "are undecided",
    UNKNOWN: "have an error that is not known",
}
RULE = """\
Measured numbers have their standard error; intervals are 95 % ones by Student's t, with the degrees
of freedom of the seeds or of the fit. Verdicts follow from the numbers alone:

- A number *agrees* where its interval contains what is predicted. It is *within the tolerance but
  different* where the interval excludes that, by no more than the tolerance (behind ±); else it
  *does not hold*. It is *undecided* where the interval is wider than the tolerance and reaches into
  it.
- An inequality agrees where it is true of the whole interval, does not hold where it is of no part
  of it, and is undecided between the two.
- A statement, or a number without sampling (z: exact), agrees where it is the same. A number whose
  error is not known has no verdict.
- z is the difference from the prediction, or from the nearer bound, over its standard error, as the
  normal deviate of the probability that Student's t has: the interval excludes the prediction where
  |z| > 1.96. So does one of twenty true predictions.
- Exponents of the width are fitted to the logarithm of the root mean square over seeds, weighted by
  the errors of the points. p is that of the chi-square test of the fit: where it is small the
  points lie on no power, and the error of the exponent says too little. Where an exponent does not
  agree, its note has that of the geometric mean over seeds (if this agrees, tails make the
  difference) and that between the two largest widths (if this agrees, narrow widths may)."""


@dataclass(frozen=True)
class Interval:
    """A prediction that is an inequality: low ≤ measured ≤ high; see `at_most`, `at_least`."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"≤ {number(self.high)}"
        if self.high == math.inf:
            return f"≥ {number(self.low)}"
        return f"{number(self.low)} … {number(self.high)}"


def at_most(bound: float) -> Interval:
    """The prediction measured ≤ bound."""
    return Interval(high=bound)


def at_least(bound: float) -> Interval:
    """The prediction measured ≥ bound."""
    return Interval(low=bound)


@dataclass(frozen=True)
class Row:
    """One claim: what is predicted, what was measured, and the verdict that follows.

    Args:
        claim: what is claimed, in a few words.
        predicted: a number, an `Interval`, or a statement in words such as the name of a regime.
        measured: a `Measurement`; a number that involves no sampling; or the statement that the
            measurement led to.
        tolerance: how far a predicted number may be off: for the bias of finite widths, a series
            that was cut, or rounding in the source. 0 means exactly.
        note: anything else worth knowing, such as the source's own measurement.

    Raises:
        ValueError: a number against a statement, a number that is not finite, or an estimate with a
            standard error that would have to be exact.

    >>> Row("exponent of f_0", -0.5, Measurement(-0.48, 0.02, 40), tolerance=0.1).verdict
    'agrees'
    >>> Row("exponent of f_0", -0.5, Measurement(-0.43, 0.02, 40), tolerance=0.1).verdict
    'within the tolerance but different'
    >>> Row("regime of naive_ip, L = 3", "trivial", "mean-field").verdict
    'does not hold'
    >>> Row("difference, relative", at_most(1e-12), 3e-16).verdict
    'agrees'
    """

    claim: str
    predicted: float | str | Interval
    measured: float | str | Measurement
    tolerance: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.predicted, str) != isinstance(self.measured, str):
            raise ValueError(f"{self.claim}: a number cannot be compared with a statement")
        for name in ("measured", "predicted", "tolerance"):
            value = getattr(self, name)
            if isinstance(value, (str, Interval, Measurement)):
                continue
            if not math.isfinite(value):
                raise ValueError(f"{self.claim}: {name} has to be a finite number, not {value}")
            object.__setattr__(self, name, float(value))
        needs = isinstance(self.measured, Measurement) and self.measured.stderr != 0
        if needs and not isinstance(self.predicted, Interval) and not self.tolerance:
            raise ValueError(f"{self.claim}: an estimate is never exact, it needs a tolerance")

    @property
    def verdict(self) -> str:
        """What follows by the rule `RULE`: one of five outcomes."""
        if isinstance(self.measured, str):
            return AGREES if self.measured == self.predicted else FAILS
        value, (low, high) = self._measured()
        if math.isinf(high):
            return UNKNOWN
        bounds = self._bounds()
        if isinstance(self.predicted, Interval):
            if bounds.low <= low and high <= bounds.high:
                return AGREES
            return FAILS if high < bounds.low or bounds.high < low else OPEN
        if high - value > self.tolerance:
            reaches = low <= bounds.high + self.tolerance and bounds.low - self.tolerance <= high
            return OPEN if reaches else FAILS
        if low <= bounds.low <= high:
            return AGREES
        # Not |difference| <= tolerance, which rounding would spoil for tabulated numbers.
        inside = bounds.low - self.tolerance <= value <= bounds.high + self.tolerance
        return WITHIN if inside else FAILS

    @property
    def z(self) -> float | None:
        """The difference in standard errors, as a normal deviate; None without a standard error."""
        found = self.measured
        if not isinstance(found, Measurement) or found.stderr is None or found.degrees is None:
            return None
        bounds = self._bounds()
        nearest = min(
            (found.value - end for end in (bounds.low, bounds.high) if math.isfinite(end)), key=abs
        )
        return float(normal_deviate(nearest, [(np.float64(found.stderr) ** 2, found.degrees)]))

    def _bounds(self) -> Interval:
        if isinstance(self.predicted, Interval):
            return self.predicted
        assert not isinstance(self.predicted, str)
        return Interval(self.predicted, self.predicted)

    def _measured(self) -> tuple[float, tuple[float, float]]:
        """The measured number and its interval, which is a point where nothing was sampled."""
        found = self.measured
        assert not isinstance(found, str)
        if isinstance(found, Measurement):
            return found.value, found.interval()
        return found, (found, found)

    def cells(self) -> dict[str, str]:
        """The row as text, by the heads of the columns of the table."""
        predicted, found, p = number(self.predicted), self.measured, ""
        if self.tolerance:
            predicted += f" ± {number(self.tolerance)}"
        if isinstance(found, Measurement):
            measured, z = number(found.value), "not known"
            if found.stderr is not None:
                measured += f" ± {number(found.stderr, digits=2)}"
                z = f"{self.z:.1f}".replace("-", "−").replace("inf", "∞").replace("−0.0", "0.0")
            p = "" if found.p is None else number(found.p, digits=1)
        else:
            measured, z = number(found), "" if isinstance(found, str) else "exact"
        return {
            "claim": self.claim,
            "predicted": predicted,
            "measured": measured,
            "z": z,
            "p": p,
            "verdict": self.verdict,
            "note": self.note,
        }


def exponent_row(
    claim: str, predicted: float, sizes: Mapping[int, Any], tolerance: float, note: str = ""
) -> Row:
    """The row of an exponent of the width, fitted to sizes by `power_law`.

    Where it does not agree the note says what two other exponents are: that of the geometric mean,
    which tails do not move, and that between the two largest widths, where the bias of finite
    widths is the smallest.

    Args:
        sizes: by width, one size per seed.
    """
    row = Row(claim, predicted, power_law(sizes), tolerance, note)
    if row.verdict == AGREES:
        return row
    widest = {n: sizes[n] for n in sorted(sizes)[-2:]}
    others = {
        "geometric mean": power_law(sizes, typical=True),
        "two largest widths": power_law(widest),
    }
    found = [f"{name} {_compared(m, predicted)}" for name, m in others.items()]
    return Row(claim, predicted, row.measured, tolerance, "; ".join([note] * bool(note) + found))


def _compared(found: Measurement, predicted: float) -> str:
    """The number, and whether its interval contains what is predicted."""
    low, high = found.interval()
    error = "" if found.stderr is None else f" ± {number(found.stderr, digits=2)}"
    return f"{number(found.value)}{error}" + " (agrees)" * (low <= predicted <= high)


def summary(rows: list[Row]) -> str:
    """How many rows agree, do not hold, .., in words."""
    verdicts = [row.verdict for row in rows]
    counts = {verdict: verdicts.count(verdict) for verdict in _WORDS}
    return ", ".join(f"{n} {_WORDS[v]}" for v, n in counts.items() if n or v == AGREES)


def number(value: Any, digits: int = 4) -> str:
    """A number in so many digits; what is none as it is."""
    if isinstance(value, (str, Interval)):
        return str(value)
    return f"{value:.{digits}g}".replace("-", "−")
