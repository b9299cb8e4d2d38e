"""The regimes in a plane of parameterizations: areas, lines and points, from exact exponents.

Conditions on exponents are piecewise linear, so that a regime fills an area of the plane, a line or
a point. Areas are looked for at places in general position; lines and points, which no such place
hits, on a lattice of rational numbers, and a line is one where places between two points of the
lattice have a regime that neither side has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np

from tplimit import arguments
from tplimit.values.exponents import NEVER, Exponent

__all__ = ["Place", "Plane", "located", "rounded"]

Place = tuple[Fraction, Fraction]
#: How many pixels a step of the lattice has, and of how many the largest blocks are.
_PIXELS, _BLOCK = 6, 12
# A pixel is looked at here: no line through the lattice of slope 0, ±1/2, ±1, ±2 or ∞ passes.
_IN_PIXEL = Fraction(3, 7), Fraction(4, 9)
# Shares of the way between two points of the lattice, and how far aside of it. Two of them, so that
# a line across the way is not taken for one along it.
_BETWEEN = Fraction(1, 3), Fraction(3, 5)
_SIDES = (Fraction(1, 97), Fraction(-1, 97))
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1), (1, 2), (1, -2), (2, 1), (2, -1))


@dataclass(frozen=True)
class Plane:
    """Names of regimes at the places (x, y) of a rectangle.

    Args:
        name_at: the regime at a place, for any rational numbers.
        x, y: the ends of the rectangle, multiples of `step`.
        step: of the lattice. Points, and the ends of lines, are found where it has a point.
    """

    name_at: Callable[[Fraction, Fraction], str]
    x: Place
    y: Place
    step: Fraction

    @cached_property
    def areas(self) -> np.ndarray:
        """Names, rows along y and columns along x, in pixels of equal size.

        Blocks whose corners agree are filled, others divided.
        """
        pixel = self.step / _PIXELS
        columns, rows = (int((high - low) / pixel) for low, high in (self.x, self.y))
        names = np.full((rows, columns), None, dtype=object)

        def name(i: int, j: int) -> str:
            if names[j, i] is None:
                x, y = ((k + at) * pixel for k, at in zip((i, j), _IN_PIXEL, strict=True))
                names[j, i] = self.name_at(self.x[0] + x, self.y[0] + y)
            return str(names[j, i])

        def fill(i: int, k: int, j: int, l: int) -> None:
            found = {name(a, b) for a in (i, k) for b in (j, l)}
            if len(found) == 1:
                names[j : l + 1, i : k + 1] = found.pop()
            elif max(k - i, l - j) > 1:
                for a, b in _halves(i, k):
                    for c, d in _halves(j, l):
                        fill(a, b, c, d)

        for i, k in _blocks(columns):
            for j, l in _blocks(rows):
                fill(i, k, j, l)
        return names

    @cached_property
    def _special(self) -> dict[Place, str]:
        """Points of the lattice with a regime that no area around has."""
        found = {}
        for i in range(int((self.x[1] - self.x[0]) / self.step) + 1):
            for j in range(int((self.y[1] - self.y[0]) / self.step) + 1):
                place = self.x[0] + i * self.step, self.y[0] + j * self.step
                name = self.name_at(*place)
                near = (slice(max(k * _PIXELS - 2, 0), k * _PIXELS + 2) for k in (j, i))
                if name not in self.areas[tuple(near)]:
                    found[place] = name
        return found

    @cached_property
    def lines(self) -> dict[str, list[tuple[Place, Place]]]:
        """By name, the pieces of the lines along which a regime holds and on neither side."""
        found: dict[str, list[tuple[Place, Place]]] = {}
        for x, y in self._special:
            for dx, dy in _DIRECTIONS:
                end = x + dx * self.step, y + dy * self.step
                if end in self._special:
                    names = {self._along((x, y), end, share) for share in _BETWEEN}
                    name = names.pop()
                    if name is not None and not names:
                        found.setdefault(name, []).append(((x, y), end))
        return found

    def _along(self, start: Place, end: Place, share: Fraction) -> str | None:
        """The regime at a place between two, if neither side has it."""
        (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
        x, y = x + share * dx, y + share * dy
        name = self.name_at(x, y)
        aside = (self.name_at(x - side * dy, y + side * dx) for side in _SIDES)
        return None if name in aside else name

    @cached_property
    def points(self) -> dict[Place, str]:
        """Places with a regime that neither an area nor a line through them has."""
        along = {(place, name) for name, ends in self.lines.items() for e in ends for place in e}
        return {place: name for place, name in self._special.items() if (place, name) not in along}

    def middles(self) -> dict[str, tuple[float, float]]:
        """By name, a place well inside of each area, for its label."""
        from scipy.ndimage import distance_transform_edt  # slow to import

        found = {}
        pixel = float(self.step) / _PIXELS
        for name in sorted(set(self.areas.flat)):
            # Names are wide: borders at the left and right count three times as close.
            away = distance_transform_edt(np.pad(self.areas == name, 1), sampling=(1, 1 / 3))
            best = np.argwhere(away[1:-1, 1:-1] > 0.9 * away.max())
            row, column = best[np.argmin(np.sum((best - best.mean(axis=0)) ** 2, axis=1))]
            found[name] = (
                float(self.x[0]) + (int(column) + 0.5) * pixel,
                float(self.y[0]) + (int(row) + 0.5) * pixel,
            )
        return found


def _halves(low: int, high: int) -> Sequence[tuple[int, int]]:
    middle = (low + high) // 2
    return [(low, high)] if high - low < 2 else [(low, middle), (middle, high)]


def _blocks(count: int) -> list[tuple[int, int]]:
    """Blocks of pixels that share their first and last ones."""
    ends = [*range(0, count - 1, _BLOCK), count - 1]
    return list(pairwise(ends))


def rounded(name: str, ends: Sequence[float | Fraction], step: Fraction) -> Place:
    """The ends of a range, out to multiples of a step.

    Raises:
        ValueError: the first one is not smaller.
        TypeError: they are not two numbers.
    """
    if not isinstance(ends, Sequence) or len(ends) != 2:
        raise TypeError(f"{name}={arguments.shown(ends)} is no range: pass (low, high)")
    low, high = (Fraction(arguments.real(name, end)).limit_denominator(1000) for end in ends)
    if not low < high:
        raise ValueError(f"{name}={arguments.shown(ends)} is empty: pass (low, high)")
    return math.floor(low / step) * step, math.ceil(high / step) * step


def located(
    exponents_at: Callable[[Fraction, Fraction], Sequence[Exponent]],
    wanted: Sequence[Exponent],
    x: Place,
    y: Place,
) -> tuple[Place, bool]:
    """The place in a plane whose exponents are closest to given ones, and whether they are these.

    Distances are Euclidean; what is exactly 0, of exponent -inf, counts in the second answer only.

    Raises:
        ValueError: the exponents are not affine in (x, y), or do not tell places apart.
    """

    def at(*place: Fraction) -> np.ndarray:
        return np.array([0 if e == NEVER else e for e in exponents_at(*place)], float)

    corner, far = at(x[0], y[0]), at(x[1], y[1])
    sides = at(x[1], y[0]) - corner, at(x[0], y[1]) - corner
    basis = np.stack(sides, axis=1)
    if not np.allclose(corner + sides[0] + sides[1], far) or np.linalg.matrix_rank(basis) < 2:
        raise ValueError(
            "the exponents of this family are not affine functions of x and y, one for each place, "
            "so that other parameterizations have no place in the plane: pass points={}"
        )
    finite = np.array([0 if e == NEVER else e for e in wanted], float)
    shares = np.linalg.lstsq(basis, finite - corner, rcond=None)[0]
    place = tuple(
        (low + Fraction(float(share)) * (high - low)).limit_denominator(100)
        for share, (low, high) in zip(shares, (x, y), strict=True)
    )
    return (place[0], place[1]), tuple(exponents_at(*place)) == tuple(wanted)
