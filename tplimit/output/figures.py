"""Figures from plain arrays, by Matplotlib's objects and never pyplot: nothing global changes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tplimit.output.files import replacing
from tplimit.output.statistics import jackknife_variance, log_root

__all__ = [
    "COLOURS",
    "INK",
    "axes_of",
    "band",
    "comparison_figure",
    "distances",
    "eigenvalues",
    "kernel_figure",
    "legend",
    "panels",
    "power_lines",
    "powers_figure",
    "save_figure",
    "shades",
    "trajectory_figure",
]

INK = "#222222"
_GRID = "#e4e4e4"
_GUIDE = "#8a8a8a"
_FIT = "#b2182b"
_MOST_POINTS = 3000
_LARGEST = 1e100
# Okabe and Ito: eight colours that colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a900")


def trajectory_figure(
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    title: str = "",
    steps: np.ndarray | None = None,
) -> Figure:
    """Curves over steps with bands from `low` to `high`; arrays of shape (steps, ...).

    At most eight entries are shown, those that move most. NaN bands are left out. `steps` are the
    places on the axis, by default 0, 1, ...
    """
    steps = np.arange(len(mean)) if steps is None else steps
    mean, low, high = (drawable(a).reshape(len(a), -1) for a in (mean, low, high))
    figure, (axes,) = _figure(6.4, 4.0, columns=1)
    shown = most_moving(mean, count=8)
    for colour, i in zip(COLOURS, shown, strict=False):
        band(axes, mean[:, i], low[:, i], high[:, i], colour, steps)
        for last in np.flatnonzero(np.isfinite(mean[:, i]))[-1:]:
            axes.annotate(
                str(i), (steps[last], mean[last, i]), (5, 0), textcoords="offset points",
                va="center", color=colour, fontsize=8,
            )  # fmt: skip
    axes.set(xlabel="step", ylabel="value")
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def comparison_figure(
    finite: Mapping[int, np.ndarray],
    limit: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    rms: Mapping[int, float],
    rms_stderr: Mapping[int, float],
    slope: float,
    slope_stderr: float,
    label: str = "output",
    random: bool = False,
) -> Figure:
    """Finite networks closing on their limit, and their distance to it by width.

    Args:
        finite: by width, arrays (seeds, steps, entries).
        limit, low, high: arrays (steps, entries), the limit and its confidence band.
        rms, rms_stderr: by width, the distance and its standard error.
        slope, slope_stderr: of log(rms) against log(width).
        label: what the curves are; the index of the entry is written behind it.
        random: whether the limit is a law: then `limit` is its mean, and no distance is shown.

    Left: the two entries that move most and differently, every seed as one thin line. Middle: the
    difference to the limit, for the first of them.
    """
    finite = {n: drawable(values) for n, values in finite.items()}
    limit, low, high = (drawable(a) for a in (limit, low, high))
    figure, axes_of = _figure(8.6 if random else 12.6, 4.0, columns=2 if random else 3)
    curves, differences, *distance = axes_of
    colours = _colours_by_width(sorted(finite))
    shown = most_moving(limit, count=2)
    steps = len(limit) - 1
    for i in shown:
        for n in sorted(finite):
            _thin_lines(curves, finite[n][:, :, i], colours[n])
        band(curves, limit[:, i], low[:, i], high[:, i], INK)
    first = shown[0]
    for n in sorted(finite):
        _thin_lines(differences, finite[n][:, :, first] - limit[:, first], colours[n])
    below, above = (end[:, first] - limit[:, first] for end in (low, high))
    band(differences, 0 * limit[:, first], below, above, INK)
    for axes, title in (
        (curves, f"{label} {' and '.join(map(str, sorted(shown)))}"),
        (differences, f"{label} {first}: finite width minus {'mean of the ' * random}limit"),
    ):
        axes.set(xlabel="step", xlim=(0, max(steps, 1)))
        axes.set_title(title, loc="left", fontsize=11)
    _legend(curves, colours)
    for axes in distance:
        _distance(axes, rms, rms_stderr, slope, slope_stderr, colours)
    return figure


def powers_figure(
    sizes: Mapping[int, np.ndarray], powers: np.ndarray, steps: Sequence[int], label: str
) -> Figure:
    """Sizes of networks (by width, arrays (seeds, steps)) at some steps, with fitted powers."""
    figure, (axes,) = _figure(5.6, 4.0, columns=1)
    names = {t: f"step {t}" for t in steps}
    power_lines(
        axes,
        {names[t]: {n: x[:, t] for n, x in sizes.items()} for t in steps},
        {names[t]: float(powers[t]) for t in steps if np.isfinite(powers[t])},
    )
    axes.set_ylabel("root mean square over entries")
    axes.set_title(f"size of {label}s by width", loc="left", fontsize=11)
    return figure


def kernel_figure(kernel: np.ndarray, title: str = "") -> Figure:
    """A kernel matrix, and its eigenvalues by size where there are at most 3000 points."""
    figure, (picture, spectrum) = _figure(9.6, 4.2, columns=2)
    picture.grid(False)
    image = picture.imshow(kernel, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=picture, shrink=0.85)
    picture.set_title(title, loc="left", fontsize=11)
    spectrum.set_title("eigenvalues", loc="left", fontsize=11)
    if len(kernel) > _MOST_POINTS or not np.all(np.isfinite(kernel)):
        spectrum.set_axis_off()
        return figure
    values = eigenvalues(kernel)
    spectrum.loglog(np.arange(1, len(values) + 1), values, ".", color=COLOURS[0])
    spectrum.set(xlabel="number", ylabel="eigenvalue")
    return figure


def eigenvalues(kernel: np.ndarray) -> np.ndarray:
    """Those of a symmetric matrix that are above the round-off of the largest, largest first."""
    values = np.linalg.eigvalsh(kernel)[::-1]
    return values[values > len(values) * np.finfo(kernel.dtype).eps * values[0]]


def most_moving(curves: np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` of the curves (steps, entries), largest range first.

    After the first, a curve's range counts less the more parallel it is to those chosen before:
    two lines on top of each other show nothing.
    """
    rest = np.nan_to_num(curves - curves[:1]).astype(float)
    chosen: list[int] = []
    for _ in range(min(count, curves.shape[1])):
        norms = np.linalg.norm(rest, axis=0)
        norms[chosen] = -1.0
        best = int(np.argmax(norms))
        chosen.append(best)
        if norms[best] > 0:
            direction = rest[:, best] / norms[best]
            rest = rest - np.outer(direction, np.maximum(direction @ rest, 0.0))
    return chosen


def drawable(values: Any) -> np.ndarray:
    """Values with NaN, which leaves a gap, for what has no place in a picture.

    That is what is not finite, and what is so large that the arithmetic of Matplotlib overflows.
    """
    values = np.asarray(values, float)
    return np.where(np.abs(values) < _LARGEST, values, np.nan)


def power_lines(
    axes: Axes, sizes: Mapping[str, Mapping[int, Any]], exponents: Mapping[str, float]
) -> None:
    """Root mean squares of sizes by width on logarithmic axes, one colour per name.

    Bars are two standard errors over seeds. Dashed lines have the predicted exponents of the width,
    through the mean of the points; a name without prediction has none.

    Args:
        sizes: by name, by width, one size per seed.
        exponents: by name.
    """
    widths = sorted({n for values in sizes.values() for n in values})
    for colour, (name, by_width) in zip(COLOURS * len(sizes), sizes.items(), strict=False):
        n = np.array(sorted(by_width), float)
        squares = [drawable(np.asarray(by_width[int(k)], float)) ** 2 for k in n]
        middle = np.array([log_root(v) for v in squares])
        # A width where all sizes are 0, or one is not finite, has no point.
        known = np.isfinite(middle)
        if not np.any(known):
            continue
        error = 2 * np.sqrt([jackknife_variance(v) for v in squares])[known]
        n, middle, error = n[known], middle[known], np.nan_to_num(error)
        y = np.exp(middle)
        bars = [y - np.exp(middle - error), np.exp(middle + error) - y]
        label = name
        if name in exponents:
            guide = middle.mean() + exponents[name] * (np.log(n) - np.log(n).mean())
            axes.plot(n, np.exp(guide), color=colour, lw=1.1, ls=(0, (4, 3)))
            label = f"{name}: $n^{{{exponents[name]:.3g}}}$"
        axes.errorbar(n, y, yerr=bars, fmt="o", ms=4.5, color=colour, elinewidth=1.0, label=label)
    axes.set(xscale="log", yscale="log", xlabel="width n")
    axes.set_xticks(widths, [str(k) for k in widths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, ncols=1 + (len(sizes) > 3), columnspacing=1.0)


def distances(
    axes: Axes,
    series: Mapping[str, tuple[Mapping[int, float], Mapping[int, float], float, float]],
) -> None:
    """Distances by width on logarithmic axes, with fitted slopes and one of -1/2 for comparison.

    Args:
        series: by name: distances and their standard errors by width, slope and its error.
    """
    widths = sorted({n for values, *_ in series.values() for n in values})
    for i, (name, (values, errors, slope, error)) in enumerate(series.items()):
        # What is below the noise, or not finite, has no place on a logarithmic axis.
        seen = [n for n in sorted(values) if np.isfinite(values[n]) and values[n] > 0]
        y = np.array([values[n] for n in seen])
        bars = np.nan_to_num([errors[n] for n in seen])
        colour, label = COLOURS[i % len(COLOURS)], name
        if np.isfinite(slope):
            label += f": slope {_signed(slope)}"
            label += f" ± {error:.3f}" if np.isfinite(error) else ""
            _power(axes, widths, slope, _centre(seen), _centre(y), color=colour, lw=1.2)
        axes.errorbar(
            np.array(seen, float), y, yerr=[np.minimum(bars, 0.95 * y), bars],
            fmt="osD^vP*X"[i % 8], ms=4, color=colour, elinewidth=1.0, label=label,
        )  # fmt: skip
    finite = [y for values, *_ in series.values() for y in values.values() if y > 0]
    if finite:
        _half(axes, widths, *(_centre(a) for a in (widths, finite)))
    axes.set(xscale="log", yscale="log", xlabel="width n")
    axes.set_xticks(widths, [str(n) for n in widths], rotation=45 if len(widths) > 5 else 0)
    axes.xaxis.set_minor_locator(NullLocator())


def _power(axes: Axes, widths: Any, slope: float, x: float, y: float, **look: Any) -> None:
    """A power of the width through the point (x, y)."""
    axes.plot(widths, y * (np.array(widths, float) / x) ** slope, zorder=1, **look)


def _half(axes: Axes, widths: Any, x: float, y: float) -> None:
    """The slope of a central limit theorem through a point."""
    dashes = (0, (4, 3))
    _power(axes, widths, -0.5, x, y, color=_GUIDE, lw=1.2, ls=dashes, label="slope −1/2")


def _centre(values: Any) -> float:
    """The middle on a logarithmic axis."""
    return float(np.exp(np.mean(np.log(values))))


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: float = 160) -> Path:
    """Write `figure` to `path`, whose suffix chooses the format; missing folders are made."""
    target = Path(path)
    with replacing(target) as file:
        figure.savefig(file, dpi=dpi, format=target.suffix[1:] or None)
    return target


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(layout="constrained", facecolor="white")
    return figure, panels(figure, columns, (width, height))


def panels(figure: Figure, columns: int, size: tuple[float, float] | None = None) -> list[Axes]:
    """Axes side by side in an empty figure, in the one style of all figures.

    `size` is that of the figure in inches; by default 4.6 by 3.6 for each of the axes.
    """
    FigureCanvasAgg(figure)
    figure.set_size_inches(size or (4.6 * columns, 3.6))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
        a.spines[["left", "bottom"]].set_color(_GUIDE)
        a.tick_params(colors=INK, labelsize=9)
        a.grid(True, color=_GRID, lw=0.7)
        a.set_axisbelow(True)
    return list(axes)


def axes_of(given: Any, count: int = 1, size: tuple[float, float] = (3.3, 2.5)) -> list[Axes]:
    """So many axes: those that were given, else those of a new figure, by default one column wide.

    Raises:
        ValueError: others than so many were given.
    """
    if given is None:
        made = panels(Figure(layout="constrained", facecolor="white", dpi=200), count, size)
        for axes in made:
            axes.tick_params(which="both", labelsize=8)
            axes.xaxis.label.set_fontsize(9)
            axes.yaxis.label.set_fontsize(9)
        return made
    found = list(np.ravel(np.asarray(given, dtype=object)))
    if len(found) != count:
        raise ValueError(f"{len(found)} axes for {count} pictures")
    return found


def legend(axes: Axes, title: str = "", **options: Any) -> None:
    """The legend of the axes, small enough for a column; its title says what bands are."""
    found = axes.legend(
        frameon=False, fontsize=7, title=title or None, title_fontsize=6.5, handlelength=1.6,
        columnspacing=1.0, labelspacing=0.3, **options,
    )  # fmt: skip
    found.set_alignment("left")


def _colours_by_width(widths: Sequence[int]) -> dict[int, Any]:
    return dict(zip(widths, shades(len(widths)), strict=True))


def shades(count: int) -> list[Any]:
    """From light to dark, monotone in lightness: they also print in grey."""
    return list(matplotlib.colormaps["viridis_r"](np.linspace(0.08, 0.85, count)))


def band(
    axes: Axes,
    mean: Any,
    low: Any,
    high: Any,
    colour: Any,
    steps: Any = None,
    style: Any = "-",
) -> None:
    """A line with a band from `low` to `high`; `steps` are the places, by default 0, 1, ..."""
    steps = np.arange(len(mean)) if steps is None else np.asarray(steps)
    axes.fill_between(steps, low, high, color=colour, alpha=0.25, lw=0)
    axes.plot(steps, mean, color=colour, lw=1.5, ls=style, solid_capstyle="round", zorder=3)
    if np.issubdtype(steps.dtype, np.integer):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _thin_lines(axes: Axes, curves: np.ndarray, colour: Any) -> None:
    """One line per seed; `curves` has the shape (seeds, steps)."""
    axes.plot(curves.T, color=colour, lw=0.9, alpha=0.6, solid_capstyle="round")


def _legend(axes: Axes, colours: Mapping[int, Any]) -> None:
    for n, colour in colours.items():
        axes.plot([], [], color=colour, lw=2.0, label=f"n = {n}")
    axes.plot([], [], color=INK, lw=2.2, label="n = ∞")
    axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=1.2, columnspacing=1.0)


def _distance(
    axes: Axes,
    rms: Mapping[int, float],
    stderr: Mapping[int, float],
    slope: float,
    slope_stderr: float,
    colours: Mapping[int, Any],
) -> None:
    widths = np.array(sorted(rms), dtype=float)
    values = drawable([rms[n] for n in sorted(rms)])
    errors = drawable([stderr[n] for n in sorted(rms)])
    known = values > 0
    axes.set(xscale="log", yscale="log", xlabel="width n", ylabel="RMS over steps, entries, seeds")
    axes.set_title("distance to the limit", loc="left", fontsize=11)
    axes.set_xticks(widths, [f"{int(n)}" for n in widths], rotation=45 if len(widths) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    if not known.any():
        return
    centre_x, centre_y = (_centre(a[known]) for a in (widths, values))
    _half(axes, widths, centre_x, centre_y)
    if np.isfinite(slope):
        text = f"fitted slope {_signed(slope)}"
        text += f" ± {slope_stderr:.3f}" if np.isfinite(slope_stderr) else ""
        _power(axes, widths, slope, centre_x, centre_y, color=_FIT, lw=1.6, label=text)
    bars = np.where(np.isfinite(errors), errors, 0.0)
    for n, y, e in zip(widths[known], values[known], bars[known], strict=True):
        # A bar below zero has no place on a logarithmic axis.
        lower = min(e, 0.95 * y)
        axes.errorbar(
            n, y, yerr=[[lower], [e]], fmt="o", ms=5.5, color=colours[int(n)], ecolor=INK,
            elinewidth=0.9, mec=INK, mew=0.6, zorder=3,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=9)


def _signed(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")
