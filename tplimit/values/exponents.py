"""Powers of the width: exponents of entries, and sizes of axes.

Every width is ``ratio * n`` for one common ``n`` that goes to infinity. An *exponent* is an exact
rational; a *size* is the length of an axis that grows with n.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np

from tplimit import arguments
from tplimit.errors import WidthError

#: Exponents are rationals with at most this denominator.
MAX_DENOMINATOR = 24

#: The exponent of what is exactly zero.
NEVER = -math.inf

#: The exponent of what vanishes faster than any power of the width, such as ``exp(-n)``. It is not
#: zero: nobody may divide by it as by a zero of the program.
NEGLIGIBLE = Fraction(-1000)

#: The exponent of what vanishes nobody knows how slowly.
SLOWLY = -Fraction(1, MAX_DENOMINATOR)

#: An exponent: an exact rational, or ``NEVER`` for an exact zero.
Exponent = Fraction | float


def rational(value: Any, what: str = "exponent") -> Fraction:
    """``value`` as a fraction with small denominator; ``WidthError`` if it is none."""
    number = arguments.real(what, value, "a rational number such as 0.5")
    exact = Fraction(value) if isinstance(value, Rational) else Fraction(number)
    fraction = exact.limit_denominator(MAX_DENOMINATOR)
    if abs(float(fraction) - number) > 1e-6 or (fraction == 0) != (number == 0):
        raise WidthError(
            f"The {what} {value} is not a rational number with denominator up to "
            f"{MAX_DENOMINATOR}.",
            advice="Exponents of the width are exact: use for instance n**-0.5 or n**(2/3).",
        )
    return fraction


@dataclass(frozen=True)
class Size:
    """Length ``ratio * n**power`` of an axis; only ``power = 1`` is a width.

    ``name`` is the declared width's, where it is known; sizes are compared without it.
    """

    ratio: Fraction
    power: Fraction = Fraction(1)
    name: str = field(default="", compare=False)

    def at(self, n: int) -> int:
        """The length at ``n``; ``WidthError`` when that is no whole number."""
        exact = float(self.ratio) * float(n) ** float(self.power)
        if self.power == 1:
            whole = self.ratio * n
            if whole.denominator != 1:
                raise WidthError(
                    f"An axis of length {self} has no whole length at {n}.",
                    advice=f"Use samples (or a width) divisible by {self.ratio.denominator}.",
                )
            return int(whole)
        return round(exact)

    def __str__(self) -> str:
        power = "n" if self.power == 1 else f"n^{self.power}"
        return power if self.ratio == 1 else f"{self.ratio}*{power}"


Dim = int | Size


def _exact(array: np.ndarray) -> np.ndarray:
    """Exponents as fractions, whatever numbers they were given as."""
    if array.ndim == 0:
        value = array.item()
        plain = isinstance(value, Fraction) or value in (NEVER, -NEVER)
        return array if plain else np.asarray(Fraction(value), dtype=object)
    return np.asarray(
        np.frompyfunc(lambda v: _exact(np.asarray(v, object)).item(), 1, 1)(array), object
    )


class Exponents:
    """Exponents of the entries of an array: one for all, or one per entry.

    Immutable and hashable, so that it can be part of a compilation key. Along a width axis the
    exponent is the same for all coordinates, and the axis has length 1 here.
    """

    __slots__ = ("array",)
    array: np.ndarray

    def __init__(self, values: Any) -> None:
        array = _exact(np.asarray(values, dtype=object))
        if array.ndim and array.size:
            first = array.flat[0]
            if all(value == first for value in array.flat):
                array = np.asarray(first, dtype=object)
        elif array.ndim:
            array = np.asarray(NEVER, dtype=object)
        object.__setattr__(self, "array", array)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("Exponents are immutable.")

    def __reduce__(self) -> Any:
        return Exponents, (self.array,)

    def __hash__(self) -> int:
        return hash((self.array.shape, tuple(self.array.flat)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exponents) or self.array.shape != other.array.shape:
            return False
        return all(a == b for a, b in zip(self.array.flat, other.array.flat, strict=True))

    def __repr__(self) -> str:
        return f"Exponents({self})"

    def __str__(self) -> str:
        return str(self.value) if self.uniform else str(self.array.tolist())

    @property
    def uniform(self) -> bool:
        return self.array.ndim == 0

    @property
    def value(self) -> Exponent:
        """The common exponent; only where ``uniform``."""
        return self.array.item()

    def max(self) -> Exponent:
        return max(self.array.flat)

    def levels(self) -> list[Exponent]:
        """The different exponents, largest first."""
        return sorted(set(self.array.flat), reverse=True)

    def map(self, function: Callable[..., Exponent], *others: "Exponents") -> "Exponents":
        """Apply ``function`` entry by entry, with broadcasting."""
        if self.uniform and all(other.uniform for other in others):
            return Exponents(function(self.value, *(other.value for other in others)))
        vectorised = np.frompyfunc(function, 1 + len(others), 1)
        return Exponents(vectorised(self.array, *(other.array for other in others)))

    def __add__(self, other: "Exponents | Exponent") -> "Exponents":
        return self.map(lambda a, b: a + b, as_exponents(other))

    def maximum(self, *others: "Exponents | Exponent") -> "Exponents":
        larger = lambda a, b: a.map(max, b)
        return functools.reduce(larger, map(as_exponents, others), self)

    def times(self, power: Fraction) -> "Exponents":
        """Exponents of the ``power``-th power of the values."""
        zero = Fraction(0) if power == 0 else NEVER if power > 0 else -NEVER
        return self.map(lambda e: zero if e == NEVER else e * power)

    def mask(self, level: Exponent) -> np.ndarray:
        """Boolean array marking the entries with exponent ``level``."""
        return np.asarray(self.array == level, dtype=bool)


def as_exponents(value: "Exponents | Exponent | int") -> Exponents:
    return value if isinstance(value, Exponents) else Exponents(value)


ORDER_ONE = Exponents(Fraction(0))
EXACT_ZERO = Exponents(NEVER)
HALF = Fraction(1, 2)
