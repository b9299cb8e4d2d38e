"""Pictures of observables: they take axes and return axes, or make a figure of their own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tplimit.observables.densities import density
from tplimit.output import estimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_density", "plot_kernels", "plot_sharpness"]

# Matplotlib is slow to import: tplimit.output.figures is imported where it is used.


def plot_kernels(
    kernels: Any, titles: Sequence[str] | None = None, axes: Sequence["Axes"] | None = None
) -> list["Axes"]:
    """Kernel matrices side by side, in one scale of colours: a kernel over time, layers, widths.

    Args:
        kernels: (T, P, P).
        titles: one for each, by default none.
        axes: T of them; by default those of a new figure, `axes[0].figure`.

    Raises:
        ValueError: the shape is another one, or titles or axes are of another number.

    >>> axes = plot_kernels(np.eye(3)[None] * [[[1.0]], [[2.0]]], ["start", "end"])
    >>> [a.get_title(loc="left") for a in axes]
    ['start', 'end']
    """
    from tplimit.output.figures import drawable

    pictures = drawable(kernels)
    if pictures.ndim != 3 or not pictures.size:
        raise ValueError(f"kernels of shape {pictures.shape} are not (number, points, points)")
    places = _axes(axes, len(pictures), (2.7 * len(pictures) + 0.9, 2.9))
    names = [""] * len(pictures) if titles is None else list(titles)
    if len(names) != len(pictures):
        raise ValueError(f"{len(names)} titles for {len(pictures)} kernels")
    low, high = (float(f(pictures)) for f in (np.nanmin, np.nanmax))
    for a, picture, title in zip(places, pictures, names, strict=True):
        a.grid(False)
        image = a.imshow(picture, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        a.set_xticks([])
        a.set_yticks([])
        a.set_title(title, loc="left", fontsize=11)
    places[-1].figure.colorbar(image, ax=places, shrink=0.8)
    return places


def plot_density(
    draws: Any,
    networks: Mapping[str, Any] | None = None,
    *,
    label: str = "n = ∞",
    axes: "Axes | None" = None,
) -> "Axes":
    """The density of particles as a line, beside histograms of the units of networks.

    Args:
        draws: (M,), or (R, M) for R replicates: the band is a 95 % interval of their mean.
        networks: by name, such as "n = 512", the same of networks, of any shape; all their units
            are in one histogram.
        label: what the line is.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: as `density`.

    >>> random = np.random.default_rng(0)
    >>> axes = plot_density(random.normal(size=(4, 512)), {"n = 64": random.normal(size=(8, 64))})
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['n = 64', 'n = ∞']
    """
    from tplimit.output.figures import COLOURS, band

    rows = np.atleast_2d(np.asarray(draws, float))
    at, values = density(rows.reshape(-1, rows.shape[-1]))
    mean = estimates.mean(values)
    low, high = mean, mean
    if len(values) > 1:
        low, high = (end(values) for end in estimates.interval(0.95, len(values)))
    place = axes if axes is not None else _axes(None, 1, (4.6, 3.4))[0]
    for colour, (name, units) in zip(COLOURS[1:] * 9, (networks or {}).items(), strict=False):
        heights, edges = np.histogram(np.ravel(units), bins=40, range=(at[0], at[-1]), density=True)
        place.stairs(heights, edges, color=colour, alpha=0.9, lw=1.2, label=name)
    band(place, mean, low, high, COLOURS[0], at)
    place.plot([], [], color=COLOURS[0], lw=1.5, label=label)
    place.set(xlabel="value", ylabel="density", xlim=(at[0], at[-1]))
    place.set_ylim(bottom=0)
    place.legend(frameon=False, fontsize=8)
    return place


def plot_sharpness(
    curves: Mapping[str, Any],
    *,
    steps: Any = None,
    threshold: float | None = 2.0,
    axes: "Axes | None" = None,
) -> "Axes":
    """Numbers along training, one line each, with the threshold of stability; alignments, too.

    Args:
        curves: by name, (T,) or the three of (mean, low, high), the band.
        steps: places on the axis, by default 0, 1, ...
        threshold: 2 for `sharpness` in the metric of the learning rates; None for none.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: a curve has another shape.

    >>> axes = plot_sharpness({"n = ∞": np.linspace(0.5, 2, 10)})
    >>> axes.get_ylabel(), len(axes.lines)
    ('sharpness', 3)
    """
    from tplimit.output.figures import COLOURS, band, drawable

    place = axes if axes is not None else _axes(None, 1, (4.6, 3.4))[0]
    for colour, (name, given) in zip(COLOURS * 9, curves.items(), strict=False):
        curve = drawable(given)
        if curve.ndim == 1:
            curve = np.stack([curve] * 3)
        if curve.ndim != 2 or len(curve) != 3:
            raise ValueError(
                f"the curve {name!r} of shape {curve.shape} is neither (steps,) nor the three of "
                "(mean, low, high)"
            )
        mean, low, high = curve
        band(place, mean, low, high, colour, steps)
        place.plot([], [], color=colour, lw=1.5, label=name)
    if threshold is not None:
        place.axhline(threshold, color="#222222", lw=1.0, ls=(0, (4, 3)))
    place.set(xlabel="step", ylabel="sharpness")
    place.legend(frameon=False, fontsize=8)
    return place


def _axes(given: Sequence["Axes"] | None, count: int, size: tuple[float, float]) -> list["Axes"]:
    from matplotlib.figure import Figure

    from tplimit.output.figures import panels

    if given is None:
        return panels(Figure(layout="constrained", facecolor="white"), count, size)
    found = list(np.ravel(np.asarray(given, dtype=object)))
    if len(found) != count:
        raise ValueError(f"{len(found)} axes for {count} pictures")
    return found
