"""Fitting numbers that depend on the width: ``c * n**p`` and lower powers, entry by entry."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tplimit.values.exponents import MAX_DENOMINATOR, NEVER, Dim, Exponents, Size

#: How many units in the last place a literal may be off.
_ULPS = 8.0

#: How far a number of the size of a width may be off where the width had to be divided.
_ROUNDED = 8.0

#: Steps of the exponents of lower powers, and how many of them are fitted at most.
_STEPS = (Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4))
_LOWER = 3


class Misfit(Exception):
    """The numbers follow no power law of the width; the argument describes them."""


#: Lower terms of one entry: coefficients and exponents.
Lower = tuple[tuple[float, Fraction], ...]


class Fitted(NamedTuple):
    """``c n^p + l log n + O(n^rho)`` of each entry.

    Attributes:
        coefficient, exponents, remainder: c, p, rho.
        last: the value at the last of the widths it was fitted over.
        lower: of each entry, in order, what is known of the rest.
        logs: l, None where there are no logarithms; then p = 0.
    """

    coefficient: np.ndarray
    exponents: Exponents
    remainder: Exponents
    last: np.ndarray
    lower: tuple[Lower, ...] = ()
    logs: np.ndarray | None = None

    def at(self, n: int) -> np.ndarray:
        """The value at a width, by all that is known."""
        powers = np.vectorize(lambda e: 0.0 if e == NEVER else float(n) ** float(e), otypes=[float])
        found = np.asarray(self.coefficient, np.float64) * powers(self.exponents.array)
        if self.lower:
            rest = [sum(c * float(n) ** float(p) for c, p in entry) for entry in self.lower]
            found = found + np.reshape(rest, self.coefficient.shape)
        return found if self.logs is None else found + self.logs * np.log(n)


class _Entry(NamedTuple):
    """The same of one entry."""

    coefficient: float
    exponent: object
    remainder: object = NEVER
    lower: Lower = ()
    log: float = 0.0


def fit_dim(lengths: Sequence[int], ns: Sequence[int]) -> Dim:
    """Length of an axis, from its lengths in traces at widths ``ns``."""
    if len(set(lengths)) == 1:
        return int(lengths[0])
    ratios = {Fraction(int(length), n) for length, n in zip(lengths, ns, strict=True)}
    if len(ratios) == 1:
        return Size(ratios.pop())
    for power in (Fraction(2), Fraction(1, 2), Fraction(3)):
        guess = lengths[0] / ns[0] ** float(power)
        ratio = Fraction(guess).limit_denominator(10**6)
        size = Size(ratio, power)
        if all(
            abs(size.at(n) - length) <= 1e-3 * length for n, length in zip(ns, lengths, strict=True)
        ):
            return size
    raise Misfit(f"lengths {list(lengths)} at widths {list(ns)}")


def fit_constant(values: Sequence[np.ndarray], ns: Sequence[int]) -> Fitted:
    """``c n^p`` (and lower powers, kept as a remainder), or ``c + l log n``, for each entry."""
    first = np.asarray(values[0])
    if all(np.array_equal(first, np.asarray(v), equal_nan=True) for v in values[1:]):
        zero = first == 0 if first.dtype.kind in "fiu" else np.zeros(first.shape, bool)
        return Fitted(first, Exponents(np.where(zero, NEVER, 0.0)), Exponents(NEVER), first)
    if first.dtype.kind not in "fiu":
        raise Misfit(f"values of type {first.dtype} that differ between widths")
    if first.dtype == np.float16:
        raise Misfit("half-precision numbers that differ between widths: use float32 or bfloat16")
    precision = np.finfo(first.dtype).eps if first.dtype.kind == "f" else 1e-12
    stacked = np.stack([np.asarray(v, dtype=np.float64) for v in values])
    widths = np.asarray(ns, dtype=np.float64)
    entries = [
        _fit_entry(stacked[(slice(None), *index)], widths, float(precision))
        for index in np.ndindex(first.shape)
    ]
    shaped = lambda numbers, dtype: np.fromiter(numbers, dtype, len(entries)).reshape(first.shape)
    dtype = first.dtype if first.dtype.kind == "f" else np.dtype(np.float32)
    logs = shaped((entry.log for entry in entries), float)
    return Fitted(
        shaped((entry.coefficient for entry in entries), float).astype(dtype),
        Exponents(shaped((entry.exponent for entry in entries), object)),
        Exponents(shaped((entry.remainder for entry in entries), object)),
        np.asarray(values[-1]),  # of the program's own type: at a true width it is no power
        tuple(entry.lower for entry in entries) if any(e.lower for e in entries) else (),
        logs if np.any(logs) else None,
    )


def checked_dim(dim: Dim, length: int, n: int) -> Dim:
    """The same length, if it holds at a width ``n`` that no small number divides.

    There half of a width, say, is rounded. What differs by more does not follow a power.
    """
    expected = float(dim.ratio) * n ** float(dim.power) if isinstance(dim, Size) else dim
    if length == dim or (isinstance(dim, Size) and abs(length - expected) <= _ROUNDED):
        return dim
    raise Misfit(f"a length of {length} at n={n} instead of {expected:.6g}")


def checked_constant(fitted: Fitted, value: np.ndarray, n: int) -> Fitted:
    """The same power law, if it holds at such a width, with what rounding has added."""
    if np.array_equal(value, fitted.last, equal_nan=True):
        return fitted
    expected = fitted.at(n)
    off, size = np.abs(np.asarray(value, np.float64) - expected), np.abs(expected)
    dtype = fitted.coefficient.dtype
    precision = np.finfo(dtype).eps if dtype.kind == "f" else 0.0
    if np.all(off <= _ULPS * precision * size):
        return fitted
    excess = off - _ROUNDED * size / n
    if np.all(excess <= 0):
        rest = fitted.exponents.map(lambda e: NEVER if e == NEVER else e - 1)
        return fitted._replace(remainder=fitted.remainder.maximum(rest))
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    found = float(np.asarray(value)[worst])
    raise Misfit(f"{found:.6g} at n={n} instead of {float(expected[worst]):.6g}")


def _fit_entry(v: np.ndarray, n: np.ndarray, precision: float) -> _Entry:
    if np.all(v == 0):
        return _Entry(0.0, NEVER)
    if np.any(v == 0) or not np.all(np.isfinite(v)):
        raise Misfit(_describe(v, n))
    found = None
    if np.all(np.sign(v) == np.sign(v[0])):
        found = _power_law(v, n, precision)
    found = found or _logarithm(v, n, precision)
    if found is None:
        raise Misfit(_describe(v, n))
    return found


def _power_law(v: np.ndarray, n: np.ndarray, precision: float) -> _Entry | None:
    """``c n^p``, or ``c n^p (1 + a_1 x + a_2 x^2 + ..)`` with a small ``x = n^-step``."""
    small, large = np.unique(n, return_index=True)[1][-2:]  # of the two largest widths
    slope = np.log(v[large] / v[small]) / np.log(n[large] / n[small])
    power = Fraction(float(slope)).limit_denominator(MAX_DENOMINATOR)
    scaled = v * n ** -float(power)
    centre = float(np.median(scaled))
    if np.max(np.abs(scaled / centre - 1)) <= _ULPS * precision:
        return _Entry(_snapped(centre, precision), power)
    order = min(_LOWER, len(np.unique(n)) - 2)  # more widths than unknowns
    for step in _STEPS:
        x = n ** -float(step)
        c, *lower = _polynomial(x, scaled, order, precision)
        if c == 0:
            continue
        # What is no such series, as 1 + 0.1 / log n, has another limit by fewer of the widths.
        fewer = n > np.min(n)
        other = _polynomial(x[fewer], scaled[fewer], order - 1, precision)[0]
        if abs(other / c - 1) > max(16 * precision, 1e-7):
            continue
        size = np.max([np.abs(a / c) ** (1 / k) * x for k, a in enumerate(lower, 1)], axis=0)
        misfit = np.abs(scaled / np.polyval([*lower[::-1], c], x) - 1)
        if np.all(misfit <= _ULPS * precision + 4 * size ** (order + 1)) and np.all(size < 0.2):
            c = _snapped(c, precision)
            rest = tuple((a, power - k * step) for k, a in enumerate(lower, 1))
            return _Entry(c, power, power - step, rest)
    return None


def _polynomial(x: np.ndarray, v: np.ndarray, order: int, precision: float) -> list[float]:
    """Coefficients in ascending order; widths count by how little is left out there."""
    powers, scale = np.arange(order + 1), np.max(x)
    weights = 1 / (max(precision, 1e-9) + (x / scale) ** (order + 1))
    design = (x[:, None] / scale) ** powers
    found = np.linalg.lstsq(design * weights[:, None], v * weights, rcond=0.0)[0]
    return (found / scale**powers).tolist()


def _logarithm(v: np.ndarray, n: np.ndarray, precision: float) -> _Entry | None:
    """``c + l log n``."""
    design = np.stack([np.ones_like(n), np.log(n)], axis=1)
    c, log = np.linalg.lstsq(design, v, rcond=None)[0].tolist()
    if np.any(np.abs(design @ [c, log] - v) > _ULPS * precision * np.max(np.abs(v))):
        return None
    c = 0.0 if abs(c) <= _ULPS * precision * np.max(np.abs(v)) else _snapped(c, precision)
    return _Entry(c, Fraction(0), log=_snapped(log, precision))


def _snapped(c: float, precision: float) -> float:
    """``c`` or, within round-off of it, a simple fraction: 0.5 instead of 0.49999997."""
    simple = float(Fraction(c).limit_denominator(1000))
    return simple if abs(simple - c) <= _ULPS * precision * abs(c) else c


def _describe(v: np.ndarray, n: np.ndarray) -> str:
    pairs = ", ".join(f"{x:.6g} at n={int(w)}" for x, w in zip(v, n, strict=True))
    return f"numbers that are not c*n^p: {pairs}"
