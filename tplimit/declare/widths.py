"""Widths as users write them: ``Width``, and scales ``c * n**p`` for standard deviations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Rational
from typing import Any, NoReturn

from tplimit import arguments
from tplimit.errors import WidthError
from tplimit.values.exponents import rational


class _Arithmetic:
    """Products, quotients and powers of widths are scales; a sum with an integer is a length."""

    def __add__(self, other: Any) -> "Sum":
        return Sum((self, other)) if _is_length(self, other) else self._no_sum(other)

    def __radd__(self, other: Any) -> "Sum":
        return Sum((other, self)) if _is_length(self, other) else self._no_sum(other)

    def __mul__(self, other: Any) -> "Scale":
        first, second = as_scale(self), as_scale(other)
        powers = dict(first.powers)
        for width, power in second.powers:
            powers[width] = powers.get(width, Fraction(0)) + power
        kept = tuple((width, power) for width, power in powers.items() if power != 0)
        return Scale(first.coefficient * second.coefficient, kept)

    __rmul__ = __mul__

    def __neg__(self) -> "Scale":
        return self * -1

    def __pow__(self, power: Any) -> "Scale":
        exact, base = rational(power), as_scale(self)
        if (base.coefficient == 0 and exact < 0) or (
            base.coefficient < 0 and exact.denominator > 1
        ):
            raise ValueError(f"({base}) ** {exact} is no real number")
        powers = tuple((width, old * exact) for width, old in base.powers if exact != 0)
        try:
            coefficient = base.coefficient ** float(exact)
        except OverflowError:
            coefficient = math.inf
        return Scale(coefficient, powers)

    def sqrt(self) -> "Scale":
        """The square root; ``np.sqrt(width)`` calls it."""
        return self**0.5

    def __truediv__(self, other: Any) -> "Scale":
        return self * as_scale(other) ** -1

    def __rtruediv__(self, other: Any) -> "Scale":
        return as_scale(other) * self**-1

    def _no_sum(self, other: Any) -> NoReturn:
        text = " and ".join(sorted(map(str, (self, other))))
        raise WidthError(
            f"A sum or difference of {text} is neither a size nor a scale that tplimit knows.",
            advice="Scales are c * n**p; sizes are integers, multiples of a width, and sums of the "
            "two, 3 + n or n + 3.",
        )

    __sub__ = __rsub__ = _no_sum

    def _no_rest(self, other: Any) -> NoReturn:
        raise WidthError(
            f"A width has no whole part and no rest: {self} is divided by {other}.",
            advice="Write n / 2; an integer width then has to be divisible by 2.",
        )

    __floordiv__ = __mod__ = _no_rest


def _is_length(width: Any, other: Any) -> bool:
    """Whether a multiple of a width and a positive integer are added."""
    whole = isinstance(other, int) and not isinstance(other, bool) and other > 0
    return whole and as_scale(width).as_power_of_n()[1] == 1


@dataclass(frozen=True)
class Sum:
    """A length ``k + n``: an integer and a multiple of a width, in the order in which they stand
    side by side."""

    parts: tuple[Any, Any]

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


@dataclass(frozen=True)
class Scale(_Arithmetic):
    """``coefficient * product of widths to rational powers``, for standard deviations and sizes.

    Made by arithmetic on widths: ``2 * n**-0.5``, ``n / m``, ``(3 * n)``.

    Raises:
        ValueError: the coefficient is NaN or infinite.

    Example:
        >>> import tplimit as tp
        >>> n = tp.Width("n")
        >>> (2 * n**-0.5).at({"n": 64})
        0.25
    """

    coefficient: float
    powers: tuple[tuple["Width", Fraction], ...] = ()

    def __post_init__(self) -> None:
        number = arguments.real("the coefficient of a scale", self.coefficient)
        object.__setattr__(self, "coefficient", number)

    def __str__(self) -> str:
        names = (w.name if p == 1 else f"{w.name}**{p}" for w, p in self.powers)
        number = [] if self.coefficient == 1 and self.powers else [f"{self.coefficient:g}"]
        return " * ".join([*number, *names])

    def at(self, sizes: Mapping[str, int]) -> float:
        """The number at given widths, ``{name: size}``."""
        value = float(self.coefficient)
        for width, power in self.powers:
            value *= float(sizes[width.name]) ** float(power)
        return value

    def as_power_of_n(self) -> tuple[float, Fraction]:
        """``(c, p)`` with the value ``c * n**p`` when every width is ``ratio * n``."""
        value, total = float(self.coefficient), Fraction(0)
        for width, power in self.powers:
            value *= float(width.ratio) ** float(power)
            total += power
        return value, total

    @property
    def widths(self) -> tuple["Width", ...]:
        return tuple(width for width, _ in self.powers)


@dataclass(frozen=True)
class Width(_Arithmetic):
    """A width: an axis length that goes to infinity, ``ratio`` times the common ``n``.

    Args:
        name: how the width is called; two widths of one name are the same width.
        ratio: this width divided by the common ``n``. With two differently named widths the
            limit depends on their ratio, so it must be declared (else ``WidthError``).

    Arithmetic gives scales: ``n**-0.5``, ``2 / n``, ``3 * n``. The exponents are exact. Sums with
    an integer, ``3 + n`` or ``n + 3``, are lengths of axes.

    Raises:
        WidthError: no name, or a ratio that is not positive, or no rational number with denominator
            up to 24.
        TypeError, ValueError: the ratio is no real number, or not finite.

    Example:
        >>> import tplimit as tp
        >>> n, m = tp.Width("n"), tp.Width("m", ratio=2)
        >>> tp.normal((n, m), std=n**-0.5).shape == (n, m)
        True
    """

    name: str
    declared: Fraction | None = field(default=None)

    def __init__(self, name: str, ratio: Rational | float | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise WidthError(
                f"name={arguments.shown(name)} is no name of a width.",
                advice='Write for instance tp.Width("n").',
            )
        exact = None if ratio is None else rational(ratio, "ratio")
        if exact is not None and exact <= 0:
            raise WidthError(f"ratio={ratio} of width {name!r} is not positive.")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "declared", exact)

    def __str__(self) -> str:
        return self.name

    @property
    def ratio(self) -> Fraction:
        return Fraction(1) if self.declared is None else self.declared


def as_scale(value: Any, name: str = "a factor of a width") -> Scale:
    """A number, width or scale as a scale.

    Raises:
        TypeError: it is something else; ``name`` says what it is for.
        ValueError: a number that is not finite.
    """
    if isinstance(value, Scale):
        return value
    if isinstance(value, Width):
        return Scale(1.0, ((value, Fraction(1)),))
    return Scale(arguments.real(name, value, "a finite number, a width, or c * n**p"))
