"""The picture of a plane of parameterizations, coloured by regime."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tplimit import arguments, parameterizations
from tplimit.networks.models import Model
from tplimit.networks.scaling import Parameterization
from tplimit.regimes.counted import classified, classify, degree_of, effective_exponents
from tplimit.regimes.planes import Place, Plane, located, rounded
from tplimit.values.exponents import Exponent

if TYPE_CHECKING:
    import optax
    from matplotlib.axes import Axes

__all__ = ["plot_regimes"]

_NAMED = {
    "NTK": parameterizations.ntk,
    "muP": parameterizations.mup,
    "mean-field": parameterizations.mean_field,
    "integrable": parameterizations.naive_ip,
    "standard": parameterizations.standard,
}
# What has no limit to look at is grey.
_GREYS = {"unstable": "#c9c9c9", "diverging": "#c9c9c9", "trivial": "#f3f3f3"}
_GREYS["stagnating"] = "#f3f3f3"
_FIRST = ("kernel", "feature learning", "muP-like", "mean-field")  # the same colours everywhere
_TINT = 0.35
_INK = "#222222"


def plot_regimes(
    family: Callable[[Fraction, Fraction], Parameterization],
    x: tuple[float, float],
    y: tuple[float, float],
    model: Model,
    *,
    points: Mapping[str, Parameterization] | None = None,
    optimizer: "optax.GradientTransformation | None" = None,
    step: float | Fraction = Fraction(1, 12),
    axes: "Axes | None" = None,
) -> "Axes":
    """The phase diagram of a plane of parameterizations, as `tplimit.classify` names the regimes.

    Areas have a light colour and their name in them, lines a strong colour and a place in the
    legend, single points a dot. What is unstable (diverging) is dark grey, what is trivial
    (stagnating) light grey. Exponents are exact: lines and points are found, not guessed.

    Args:
        family: from two exponents, exact fractions, to a parameterization. The names of its
            arguments name the axes.
        x, y: their ranges (low, high), taken out to multiples of `step`.
        model: the network, from `tplimit.mlp`; with one hidden layer, regimes are Golikov's.
        points: parameterizations to show, by name; by default NTK, muP, mean-field, integrable and
            standard. Circles are in the plane, up to (a, b, c) → (a + θ, b - θ, c - 2θ); diamonds
            are not, and stand at the closest place. They have the colour of their own regime,
            black where that has no colour here.
        optimizer: as for `tplimit.classify`.
        step: exact multiples of it are where points are found, and where lines begin and end.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: a range is empty, a `step` not positive; the exponents of `family` are not
            affine functions and there are `points`; or as `tplimit.classify`.
        TypeError: other arguments.

    Sources: Golikov, Dynamically Stable Infinite-Width Limits of Neural Classifiers, arXiv
    2006.06574 (the plane of one hidden layer); Yang and Hu, Tensor Programs IV, arXiv 2011.14522
    (the polytope of stable abc-parameterizations).

    >>> import tplimit as tp
    >>> golikov = tp.parameterizations.golikov
    >>> axes = plot_regimes(golikov, (-1, -0.5), (0, 1), tp.mlp(1, inputs=3), step=0.25)
    >>> axes.get_xlabel(), [text.get_text() for text in axes.get_legend().get_texts()]
    ('q_sigma', ['MF–NTK', 'NTK–sym-def', 'post-NTK', 'sym-def–MF'])
    """
    from tplimit.output.figures import axes_of, legend  # Matplotlib is slow to import

    arguments.function("family", family, "(x, y) -> Parameterization")
    exact = Fraction(arguments.positive("step", step)).limit_denominator(1000)
    ends = rounded("x", x, exact), rounded("y", y, exact)
    corner = family(ends[0][0], ends[1][0])
    classify(corner, model, optimizer)  # what has no regime is refused here
    degree = degree_of(corner, model, optimizer)  # the optimizer is tried once
    plane = Plane(lambda *at: classified(family(*at), model, degree).name, *ends, exact)
    shown = _placed(plane, family, model, degree, _NAMED if points is None else points)
    colours = _colours(plane)
    (place,) = axes_of(axes, size=(3.3, 3.1))
    place.grid(False)
    _draw_areas(place, plane, colours)
    _draw_lines(place, plane, colours)
    for at, name in plane.points.items():
        if at not in [dot.at for dot in shown if dot.inside]:
            _dot(place, at, name, _INK, "o", plane)
    for dot in shown:
        colour = _GREYS.get(dot.regime) or colours.get(dot.regime, _INK)
        _dot(place, dot.at, ", ".join(dot.names), colour, "o" if dot.inside else "D", plane)
    if not all(dot.inside for dot in shown):
        place.plot([], [], "D", ms=4, mfc="none", mec=_INK, label="not in the plane")
    if place.get_legend_handles_labels()[1]:
        legend(place, loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=3)
    first, second = (*islice(inspect.signature(family).parameters, 2), "x", "y")[:2]
    place.set(xlim=map(float, ends[0]), ylim=map(float, ends[1]), xlabel=first, ylabel=second)
    return place


class _Dot(NamedTuple):
    """A parameterization, its names, the place in the plane closest to it, and whether it is it."""

    names: list[str]
    at: Place
    inside: bool
    regime: str


def _placed(
    plane: Plane,
    family: Callable[[Fraction, Fraction], Parameterization],
    model: Model,
    degree: Fraction,
    points: Mapping[str, Parameterization],
) -> list[_Dot]:
    """Parameterizations whose place is in the rectangle; equal ones are one, of several names."""
    found: dict[tuple[Exponent, ...], _Dot] = {}
    exponents_at = lambda *at: effective_exponents(family(*at), model)
    for name, p in points.items():
        exponents = effective_exponents(p, model)
        if exponents in found:
            found[exponents].names.append(name)
            continue
        at, inside = located(exponents_at, exponents, plane.x, plane.y)
        if all(low <= c <= high for c, (low, high) in zip(at, (plane.x, plane.y), strict=True)):
            regime = classified(p, model, degree).name
            found[exponents] = _Dot([name], at, inside, regime)
    return list(found.values())


def _colours(plane: Plane) -> dict[str, Any]:
    """One strong colour for each name: first come lines, which have no label in the picture."""
    from tplimit.output.figures import COLOURS

    fixed = dict(zip(_FIRST, COLOURS, strict=False))
    names = [*sorted(plane.lines), *sorted(set(plane.areas.flat) - set(plane.lines))]
    left = [c for c in COLOURS if c not in [fixed[n] for n in names if n in fixed]]
    rest = cycle(left)
    return {name: _GREYS.get(name) or fixed.get(name) or next(rest) for name in names}


def _draw_areas(place: "Axes", plane: Plane, colours: Mapping[str, Any]) -> None:
    from matplotlib.colors import to_rgb

    def light(name: str) -> Iterable[float]:
        share = 1.0 if name in _GREYS else _TINT
        return 1 - share * (1 - np.array(to_rgb(colours[name])))

    pixels = np.array([[light(name) for name in row] for row in plane.areas])
    (left, right), (bottom, top) = (map(float, ends) for ends in (plane.x, plane.y))
    extent = (left, right, bottom, top)
    place.imshow(pixels, extent=extent, origin="lower", aspect="auto", interpolation="nearest")
    # Above the pixels, each area once more, with the steps along its borders cut off.
    for name in sorted(set(plane.areas.flat)):
        mask = (plane.areas == name).astype(float)
        place.contourf(mask, [0.5, 1.5], colors=[light(name)], extent=extent, origin="lower")
    for name, at in plane.middles().items():
        _text(place, name, at, ha="center", va="center", color="#555555")


def _draw_lines(place: "Axes", plane: Plane, colours: Mapping[str, Any]) -> None:
    for name, pieces in sorted(plane.lines.items()):
        gap = (np.nan, np.nan)
        x, y = np.array([v for start, end in pieces for v in (start, end, gap)], float).T
        place.plot(x, y, color=colours[name], lw=2.0, solid_capstyle="round", label=name)


def _dot(place: "Axes", at: Place, label: str, colour: Any, marker: str, plane: Plane) -> None:
    xy = float(at[0]), float(at[1])
    # A diamond is larger and below: a circle may be at the same place.
    look = {"ms": 5, "zorder": 4} if marker == "o" else {"ms": 7, "zorder": 3.5}
    place.plot(*xy, marker, mfc=colour, mec=_INK, mew=0.9, clip_on=False, **look)
    right, top = (
        at[i] > (1 - share) * ends[0] + share * ends[1]
        for i, (share, ends) in enumerate(((Fraction(18, 25), plane.x), (Fraction(9, 10), plane.y)))
    )
    # Names of two kinds at one place stand above and below it.
    up = (marker == "o") != bool(top)
    _text(
        place, label, xy, xytext=(-5 if right else 5, 4 if up else -4), zorder=5,
        textcoords="offset points", ha="right" if right else "left", va="bottom" if up else "top",
    )  # fmt: skip


def _text(place: "Axes", text: str, at: tuple[float, float], **options: Any) -> None:
    """Small text that can be read on lines, too."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=1.6, foreground="white")]
    place.annotate(text, at, fontsize=6.5, path_effects=halo, **{"color": _INK} | options)
