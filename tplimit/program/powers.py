"""Fitting numbers that depend on the width: ``c * n**p``, entry by entry."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tplimit.values.exponents import MAX_DENOMINATOR, NEVER, Dim, Exponents, Size

#: How many units in the last place a literal may be off.
_ULPS = 8.0

#: How far a number of the size of a width may be off where the width had to be divided.
_ROUNDED = 8.0


class Misfit(Exception):
    """The numbers follow no power law of the width; the argument describes them."""


class Fitted(NamedTuple):
    """``c n^p + O(n^rho)``, and the value at the last of the widths it was fitted over."""

    coefficient: np.ndarray
    exponents: Exponents
    remainder: Exponents
    last: np.ndarray


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
    """``c n^p`` (or ``c n^p (1 + a/n)``, kept with a remainder) for each entry of an array."""
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
    coefficient = np.zeros(first.shape)
    exponents = np.empty(first.shape, dtype=object)
    remainder = np.empty(first.shape, dtype=object)
    for index in np.ndindex(first.shape):
        entry = (slice(None), *index)
        fit = _fit_entry(stacked[entry], np.asarray(ns, dtype=np.float64), float(precision))
        coefficient[index], exponents[index], remainder[index] = fit
    dtype = first.dtype if first.dtype.kind == "f" else np.dtype(np.float32)
    last = np.asarray(values[-1])  # of the program's own type: at a true width it is no power
    return Fitted(coefficient.astype(dtype), Exponents(exponents), Exponents(remainder), last)


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
    powers = np.vectorize(lambda e: 0.0 if e == NEVER else float(n) ** float(e), otypes=[float])
    expected = np.asarray(fitted.coefficient, np.float64) * powers(fitted.exponents.array)
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


def _fit_entry(v: np.ndarray, n: np.ndarray, precision: float) -> tuple[float, object, object]:
    if np.all(v == 0):
        return 0.0, NEVER, NEVER
    if np.any(v == 0) or np.any(np.sign(v) != np.sign(v[0])) or not np.all(np.isfinite(v)):
        raise Misfit(_describe(v, n))
    small, large = np.argmin(n), np.argmax(n)
    slope = np.log(v[large] / v[small]) / np.log(n[large] / n[small])
    power = Fraction(float(slope)).limit_denominator(MAX_DENOMINATOR)
    scaled = v * n ** -float(power)
    centre = float(np.median(scaled))
    if np.max(np.abs(scaled / centre - 1)) <= _ULPS * precision:
        return _snapped(centre, precision), power, NEVER
    design = np.stack([np.ones_like(n), 1 / n], axis=1)
    (c, ca), *_ = np.linalg.lstsq(design, scaled, rcond=None)
    if c == 0:
        raise Misfit(_describe(v, n))
    a = ca / c
    misfit = np.abs(scaled / (c * (1 + a / n)) - 1)
    if np.all(misfit <= _ULPS * precision + 4 * (a / n) ** 2) and np.all(np.abs(a / n) < 0.1):
        return _snapped(float(c), precision), power, power - 1
    raise Misfit(_describe(v, n))


def _snapped(c: float, precision: float) -> float:
    """``c`` or, within round-off of it, a simple fraction: 0.5 instead of 0.49999997."""
    simple = float(Fraction(c).limit_denominator(1000))
    return simple if abs(simple - c) <= _ULPS * precision * abs(c) else c


def _describe(v: np.ndarray, n: np.ndarray) -> str:
    pairs = ", ".join(f"{x:.6g} at n={int(w)}" for x, w in zip(v, n, strict=True))
    return f"numbers that are not c*n^p: {pairs}"
