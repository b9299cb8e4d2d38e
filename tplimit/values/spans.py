"""Shares of a width: which coordinates of an axis stand where along another one."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp

from tplimit.values.exponents import Size


class Span(NamedTuple):
    """Coordinates ``start ... start + length`` of an axis, put at ``place`` of another one.

    All numbers are multiples of the common width n. What is put nowhere is left out, and where
    nothing is put there are zeros. A share that is taken, a share put among zeros, and both after
    one another are spans; so is the way back.

    Attributes:
        start, place, length: of the share.
        source, target: lengths of the two axes.
    """

    start: Fraction
    place: Fraction
    length: Fraction
    source: Fraction
    target: Fraction

    @classmethod
    def whole(cls, size: Size) -> "Span":
        """All coordinates, where they are."""
        zero = Fraction(0)
        return cls(zero, zero, size.ratio, size.ratio, size.ratio)

    @classmethod
    def taken(cls, size: Size, start: Fraction, length: Fraction) -> "Span":
        """A share of an axis by itself."""
        return cls(start, Fraction(0), length, size.ratio, length)

    @classmethod
    def put(cls, size: Size, place: Fraction, target: Fraction) -> "Span":
        """An axis as a share of a longer one, among zeros."""
        return cls(Fraction(0), place, size.ratio, size.ratio, target)

    @property
    def is_whole(self) -> bool:
        return self.length == self.source == self.target

    @property
    def T(self) -> "Span":
        """The way back."""
        return Span(self.place, self.start, self.length, self.target, self.source)

    def then(self, other: "Span") -> "Span | None":
        """This span and another one of its target; None if nothing is left."""
        first = max(self.place, other.start)
        last = min(self.place + self.length, other.start + other.length)
        if last <= first:
            return None
        start, place = self.start + first - self.place, other.place + first - other.start
        return Span(start, place, last - first, self.source, other.target)

    def moved(self, array: Any, n: int) -> Any:
        """An array whose last axis is the source, for ``n`` particles."""
        if self.is_whole:
            return array
        start, place, length, target = (
            Size(ratio).at(n) if ratio else 0
            for ratio in (self.start, self.place, self.length, self.target)
        )
        share = array[..., start : start + length]
        room = [(0, 0)] * (share.ndim - 1) + [(place, target - place - length)]
        return jnp.pad(share, room)


def shares(size: Size, lengths: Sequence[Size]) -> Iterator[Span]:
    """One span for each of these shares of an axis, from the first on."""
    start = Fraction(0)
    for length in lengths:
        yield Span.taken(size, start, length.ratio)
        start += length.ratio
