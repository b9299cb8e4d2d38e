"""Which width axes are one: the common dimension classes of the Tensor Programs papers."""

from collections.abc import Iterable, Mapping


class Spaces:
    """Labels of width axes; those that are combined coordinate by coordinate are unified."""

    def __init__(self, classes: Mapping[int, int] | Iterable[tuple[int, int]] = ()) -> None:
        self.classes = dict(classes)

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
