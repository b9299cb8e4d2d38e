"""Pictures of observables: they take axes and return axes, or make a figure of their own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tplimit.observables.densities import density
from tplimit.output import estimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_density", "plot_kernels", "plot_sharpness", "plot_spectrum"]

# Matplotlib is slow to import: tplimit.output.figures is imported where it is used.

_BANDS = "bands: 95 % intervals"


def plot_kernels(
    kernels: Any,
    titles: Sequence[str] | None = None,
    axes: Sequence["Axes"] | None = None,
    *,
    label: str = "kernel",
) -> list["Axes"]:
    """Kernel matrices side by side, in one scale of colours: a kernel over time, layers, widths.

    Args:
        kernels: (T, P, P).
        titles: one for each, by default none.
        label: what the colours are.
        axes: T of them; by default those of a new figure, `axes[0].figure`.

    Raises:
        ValueError: the shape is another one, or titles or axes are of another number.

    >>> axes = plot_kernels(np.eye(3)[None] * [[[1.0]], [[2.0]]], ["start", "end"])
    >>> [a.get_title(loc="left") for a in axes]
    ['start', 'end']
    """
    from tplimit.output.figures import axes_of, drawable

    pictures = drawable(kernels)
    if pictures.ndim != 3 or not pictures.size:
        raise ValueError(f"kernels of shape {pictures.shape} are not (number, points, points)")
    places = axes_of(axes, len(pictures), (max(3.3, 1.1 * len(pictures) + 0.7), 1.6))
    names = [""] * len(pictures) if titles is None else list(titles)
    if len(names) != len(pictures):
        raise ValueError(f"{len(names)} titles for {len(pictures)} kernels")
    low, high = (float(f(pictures)) for f in (np.nanmin, np.nanmax))
    for a, picture, title in zip(places, pictures, names, strict=True):
        a.grid(False)
        image = a.imshow(picture, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        a.set_xticks([])
        a.set_yticks([])
        a.set_title(title, loc="left", fontsize=8)
        a.set_xlabel("point", fontsize=8)
    places[0].set_ylabel("point", fontsize=8)
    bar = places[-1].figure.colorbar(image, ax=places, shrink=0.8)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
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
    from tplimit.output.figures import COLOURS, axes_of, band, legend

    rows = np.atleast_2d(np.asarray(draws, float))
    at, values = density(rows.reshape(-1, rows.shape[-1]))
    mean, low, high = _interval(values)
    (place,) = axes_of(axes)
    for colour, (name, units) in zip(COLOURS[1:] * 9, (networks or {}).items(), strict=False):
        heights, edges = np.histogram(np.ravel(units), bins=40, range=(at[0], at[-1]), density=True)
        place.stairs(heights, edges, color=colour, alpha=0.9, lw=1.2, label=name)
    band(place, mean, low, high, COLOURS[0], at)
    place.plot([], [], color=COLOURS[0], lw=1.5, label=label)
    place.set(xlabel="value", ylabel="density", xlim=(at[0], at[-1]))
    place.set_ylim(0, 1.25 * place.get_ylim()[1])  # with room for the legend
    legend(place, _BANDS if len(values) > 1 else "")
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
    from tplimit.output.figures import COLOURS, axes_of, band, drawable, legend

    (place,) = axes_of(axes)
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
    legend(place)
    return place


def plot_spectrum(
    kernels: Any,
    networks: Mapping[str, Any] | None = None,
    *,
    label: str = "n = ∞",
    axes: "Axes | None" = None,
) -> "Axes":
    """Eigenvalues of a kernel matrix by size, on logarithmic axes, beside those of networks.

        λ_1 ≥ λ_2 ≥ ..    of each replicate; their geometric mean, and its 95 % interval

    Eigenvalues at the round-off of the largest one are left out, and a number that some replicate
    is without. Sampling errors of the kernel spread close eigenvalues and lift small ones: below
    the error of the kernel's entries they are those of noise.

    Args:
        kernels: (P, P), or (R, P, P) for R replicates: the band is over them. Those of a run are
            `run.replicates.observations[..][:, step]`, for any kernel that was observed.
        networks: by name, such as "n = 512", the same of networks.
        label: what the first line is.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: a kernel has another shape, is not symmetric, not finite, or has no positive
            eigenvalue.

    >>> random = np.random.default_rng(0)
    >>> factors = random.normal(size=(4, 8, 32)) / np.arange(1, 9)[:, None]
    >>> axes = plot_spectrum(factors @ factors.swapaxes(1, 2) / 32, {"n = 4": np.eye(8)})
    >>> axes.get_xscale(), [text.get_text() for text in axes.get_legend().get_texts()]
    ('log', ['n = ∞', 'n = 4'])
    """
    from tplimit.output.figures import COLOURS, axes_of, band, legend

    given = {label: kernels} | dict(networks or {})
    spectra = {name: _spectra(name, matrices) for name, matrices in given.items()}
    (place,) = axes_of(axes)
    for i, (name, values) in enumerate(spectra.items()):
        middle, low, high = map(np.exp, _interval(np.log(values)))
        colour, number = COLOURS[i % len(COLOURS)], np.arange(1.0, len(middle) + 1)
        band(place, middle, low, high, colour, number)
        marker = "osD^vP*X"[i % 8]
        place.plot(number, middle, marker, ms=3, color=colour)
        place.plot([], [], f"{marker}-", ms=3, lw=1.5, color=colour, label=name)
    place.set(xscale="log", yscale="log", xlabel="number", ylabel="eigenvalue")
    most = max(values.shape[1] for values in spectra.values())
    numbers = [f * 10**e for e in range(len(str(most))) for f in (1, 2, 5) if f * 10**e <= most]
    place.set_xticks(numbers, [str(number) for number in numbers])
    place.set_xticks([], minor=True)
    legend(place, _BANDS if any(len(values) > 1 for values in spectra.values()) else "")
    return place


def _spectra(name: str, kernels: Any) -> np.ndarray:
    """Eigenvalues of replicates (R, number), largest first, as many as all have."""
    from tplimit.output.figures import eigenvalues

    matrices = np.asarray(kernels)
    matrices = matrices.astype(np.result_type(matrices, np.float32))
    if matrices.ndim == 2:
        matrices = matrices[None]
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.size:
        raise ValueError(
            f"kernels of {name} of shape {matrices.shape} are neither (points, points) nor "
            "(replicates, points, points)"
        )
    if not np.all(np.isfinite(matrices)):
        raise ValueError(f"kernels of {name} are not finite")
    size = np.abs(matrices).max()
    if np.abs(matrices - matrices.swapaxes(1, 2)).max() > 1e-3 * size:
        raise ValueError(f"kernels of {name} are not symmetric: they have no real spectrum")
    found = [eigenvalues((matrix + matrix.T) / 2) for matrix in matrices]
    count = min(map(len, found))
    if not count:
        raise ValueError(f"kernels of {name} have no positive eigenvalue")
    return np.array([values[:count] for values in found])


def _interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over replicates and its 95 % interval; without one for a single one."""
    mean = estimates.mean(values)
    if len(values) < 2:
        return mean, mean, mean
    low, high = estimates.interval(0.95, len(values))
    return mean, low(values), high(values)
