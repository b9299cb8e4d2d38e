"""Which width axes are one: the common dimension classes of the Tensor Programs papers."""

from collections.abc import Hashable, Iterable, Mapping

#: From here on labels are those of draws along a width, which no call leaves to the next.
_DRAWS = 10**6


class Spaces:
    """Labels of width axes; those that are combined coordinate by coordinate are unified."""

    def __init__(self, classes: Mapping[int, int] | Iterable[tuple[int, int]] = ()) -> None:
        self.classes = dict(classes)
        self._draws: dict[Hashable, int] = {}

    def of_draw(self, width: Hashable) -> int:
        """The label of the axis of draws along a width.

        It is one for all of them, which so fluctuate together if they are equal, as the keys tell
        in the run only; independent ones have uncorrelated fluctuations by their particles.
        """
        return self._draws.setdefault(width, _DRAWS + len(self._draws))

    @property
    def drawn(self) -> bool:
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

    def roots(self) -> dict[int, int]:
        """For each label that is known to have another, the one that stands for it."""
        return {space: self.find(space) for space in self.classes}

    def lasting(self) -> dict[int, int]:
        """The same for the labels that later calls know."""
        return {space: root for space, root in self.roots().items() if space < _DRAWS}

    def left(self, space: int | None) -> int | None:
        """The label of an axis that leaves the call: None for that of a draw by itself, of which
        no later call knows what it has in common with others."""
        root = None if space is None else self.find(space)
        return None if root is None or root >= _DRAWS else root
