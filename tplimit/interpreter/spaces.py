"""Which width axes are one: the common dimension classes of the Tensor Programs papers.

A width may be divided into shares, as into the heads of attention, the gates of a recurrent cell,
or the halves that a rotation acts on. Shares keep the label of the width: coordinate ``i`` of each
is an independent copy of coordinate ``i`` of the others, and what is made of several of them is a
function of these copies. So sign symmetries, which flip a source in all copies at once, hold on as
they are; and sums over shares fluctuate jointly right, with one another and with the sum over the
whole width, if all have the same multipliers (``Spaces.unit``).
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction

#: From here on labels are those of draws along a width, which no call leaves to the next.
_DRAWS = 10**6


class Spaces:
    """Labels of width axes; those that are combined coordinate by coordinate are unified.

    Attributes:
        classes: for each label that has been unified another one of its class.
        units: for each label of which there are shares a length, over ``n``, that divides theirs
            and that of the width.
        drawn: for each label by which an earlier call has drawn multipliers, the unit that its
            width had.
    """

    def __init__(
        self,
        classes: Mapping[int, int] | Iterable[tuple[int, int]] = (),
        units: Mapping[int, Fraction] | Iterable[tuple[int, Fraction]] = (),
        drawn: Mapping[int, Fraction | None] | Iterable[tuple[int, Fraction | None]] = (),
    ) -> None:
        self.classes = dict(classes)
        self.units = dict(units)
        self.drawn = dict(drawn)
        self._drawing: dict[int, Fraction | None] = {}
        self._draws: dict[Hashable, int] = {}

    def copied(self) -> "Spaces":
        """Another one that knows the same, but for the multipliers of this call."""
        return Spaces(self.classes, self.units, self.drawn)

    def of_draw(self, width: Hashable) -> int:
        """The label of the axis of draws along a width.

        It is one for all of them, which so fluctuate together if they are equal, as the keys tell
        in the run only; independent ones have uncorrelated fluctuations by their particles.
        """
        return self._draws.setdefault(width, _DRAWS + len(self._draws))

    @property
    def has_draws(self) -> bool:
        """Whether anything has been drawn along a width."""
        return bool(self._draws)

    def find(self, space: int) -> int:
        """The label that stands for a space and all that are one with it."""
        while (parent := self.classes.get(space, space)) != space:
            space = parent
        return space

    def unify(self, *spaces: int | None) -> int | None:
        """Declare that width axes are combined coordinate by coordinate; None is any of them."""
        roots = sorted({self.find(space) for space in spaces if space is not None})
        for other in roots[1:]:
            self.classes[other] = roots[0]
        return roots[0] if roots else None

    def divide(self, space: int, lengths: Iterable[Fraction]) -> None:
        """Note that arrays along a width have these lengths, or begin there, over ``n``."""
        known = [self.units[space]] if space in self.units else []
        self.units[space] = _common_measure([*known, *lengths])

    def unit(self, space: int) -> Fraction | None:
        """The length, over ``n``, after which multipliers of central-limit terms repeat; None
        where there are no shares.

        Given the particles, sums over two shares are uncorrelated by the independence of these;
        and the sum over the whole is the sum of those over its shares.
        """
        root = self.find(space)
        found = [unit for label, unit in self.units.items() if self.find(label) == root]
        return _common_measure(found) if found else None

    def multiplied(self, space: int) -> tuple[int, Fraction | None] | None:
        """The label and the unit by which multipliers of a width are drawn, those of earlier calls;
        None if what these have drawn does not fit what is known now."""
        root, unit = self.find(space), self.unit(space)
        before = {label: was for label, was in self.drawn.items() if self.find(label) == root}
        if len(before) > 1 or any(was != unit for was in before.values()):
            return None
        label = next(iter(before), root)
        self._drawing[label] = unit
        return label, unit

    def lasting_multiplied(self) -> dict[int, Fraction | None]:
        """``drawn`` for later calls."""
        drawn = self.drawn | self._drawing
        return {label: unit for label, unit in drawn.items() if label < _DRAWS}

    def roots(self) -> dict[int, int]:
        """For each label that is known to have another, the one that stands for it."""
        return {space: self.find(space) for space in self.classes}

    def lasting(self) -> dict[int, int]:
        """The same for the labels that later calls know."""
        return {space: root for space, root in self.roots().items() if space < _DRAWS}

    def lasting_units(self) -> dict[int, Fraction]:
        """``units`` of the labels that later calls know."""
        units = {self.find(space): self.unit(space) for space in self.units}
        return {space: unit for space, unit in units.items() if unit and space < _DRAWS}

    def left(self, space: int | None) -> int | None:
        """The label of an axis that leaves the call: None for that of a draw by itself, of which
        no later call knows what it has in common with others."""
        root = None if space is None else self.find(space)
        return None if root is None or root >= _DRAWS else root


def _common_measure(lengths: Iterable[Fraction]) -> Fraction:
    """The largest length of which all of these are multiples."""
    every = list(lengths)
    common = math.lcm(*(length.denominator for length in every))
    return Fraction(math.gcd(*(int(length * common) for length in every)), common)
