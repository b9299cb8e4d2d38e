"""Sign symmetry: which sources of randomness a vector is odd or even in; its values near 0.

A *source* is an initial vector with a symmetric law, one side of a Gaussian matrix, or that of all
matrices of a stack together; it is named by the label of its space, a stack by one of its own.
Flipping the sign of a source at one coordinate, with all averages over widths held fixed, leaves
the law of the network unchanged. So the average of a vector that is odd in some source is exactly
zero, which no number of particles could tell from a small one. Where a width is divided into
shares, the sign is flipped at one coordinate of every share.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tplimit.values.fields import SPACES, STATIC

#: How a function of one variable behaves: f(-x) = -f(x), f(-x) = f(x), or neither.
Behaviour = Literal["odd", "even", "neither"]


class Marginal(NamedTuple):
    """What is known of the law of the coordinates of a vector (``interpreter/zeros.py``).

    Attributes:
        order: of its zeros: a share ``eps^(1/order)`` of the coordinates is below ``eps`` and not
            0; order 0 where there are none.
        atoms: whether a share of the coordinates may be exactly 0.
        heavy: whether it is not known that all its moments are finite.
        positive: whether no coordinate is negative.
        away: whether all are away from 0, though not from other numbers.
        mixed: whether it is more than a function of one vector: moments of single vectors and of
            pairs are matched, not those of their products.
    """

    order: int = 1
    atoms: bool = False
    heavy: bool = False
    positive: bool = False
    away: bool = False
    mixed: bool = False


#: Of a number.
CONSTANT = Marginal(order=0)


def marginal_of_sum(marginals: Iterable[Marginal]) -> Marginal:
    """The law of a sum, where terms of order 0 without atoms are constants."""
    every = list(marginals)
    if len(every) == 1:
        return every[0]
    moving = [one for one in every if one.order or one.atoms]
    smooth = [one.order for one in moving if not one.atoms]
    order = min(smooth) if smooth else max((one.order for one in moving), default=0)
    heavy, mixed = (any(one[place] for one in every) for place in (2, 5))
    return Marginal(order, bool(moving) and not smooth, heavy, mixed=mixed)


@dataclass(frozen=True)
class Parity:
    """Symmetries of a vector; it is even in all sources that are not named.

    Attributes:
        odd: sources that it is odd in.
        unknown: sources of which nothing is known; None stands for all.
        fresh: whether it is a Gaussian (or uniform) vector as drawn, or a finite combination of
            such: then no coordinate is exactly zero, nor with a number added. None for numbers.
        marginal: the law of single coordinates.
    """

    odd: frozenset[int] = field(default=frozenset(), metadata=SPACES)
    unknown: frozenset[int] | None = field(default=frozenset(), metadata=SPACES)
    fresh: bool | None = field(default=False, metadata=STATIC)
    marginal: Marginal = field(default=Marginal(), metadata=STATIC)

    @property
    def vanishes(self) -> bool:
        """Whether an average over the width is exactly zero."""
        return bool(self.odd)

    def __mul__(self, other: "Parity") -> "Parity":
        """Of a product, coordinate by coordinate."""
        if self.unknown is None or other.unknown is None:
            return UNKNOWN
        unknown = self.unknown | other.unknown
        return Parity((self.odd ^ other.odd) - unknown, unknown)

    def __and__(self, other: "Parity") -> "Parity":
        """Of a sum."""
        if self.unknown is None or other.unknown is None:
            return UNKNOWN
        unknown = self.unknown | other.unknown | (self.odd ^ other.odd)
        fresh = [one.fresh for one in (self, other) if one.fresh is not None]
        return Parity((self.odd & other.odd) - unknown, unknown, all(fresh) if fresh else None)

    def under(self, behaviour: Behaviour) -> "Parity":
        """Of a function of the vector, coordinate by coordinate."""
        if self.unknown is None:
            return self
        if behaviour == "odd":
            return Parity(self.odd, self.unknown)
        if behaviour == "even":
            return Parity(frozenset(), self.unknown)
        return Parity(frozenset(), self.unknown | self.odd)


#: Of what has no source: numbers, constant along a width, and averages over it.
EVEN = Parity(fresh=None, marginal=CONSTANT)

UNKNOWN = Parity(unknown=None)


def behaviour_of_power(power: object) -> Behaviour:
    """How ``x^power`` behaves."""
    if isinstance(power, int) or getattr(power, "denominator", 0) == 1:
        return "odd" if int(power) % 2 else "even"  # type: ignore[call-overload]
    return "neither"
