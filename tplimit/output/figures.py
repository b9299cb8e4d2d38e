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
    "band",
    "comparison_figure",
    "kernel_figure",
    "panels",
    "power_lines",
    "powers_figure",
    "save_figure",
    "trajectory_figure",
]

_INK = "#222222"
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
        band(curves, limit[:, i], low[:, i], high[:, i], _INK)
    first = shown[0]
    for n in sorted(finite):
        _thin_lines(differences, finite[n][:, :, first] - limit[:, first], colours[n])
    below, above = (end[:, first] - limit[:, first] for end in (low, high))
    band(differences, 0 * limit[:, first], below, above, _INK)
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
    values = np.linalg.eigvalsh(kernel)[::-1]
    # What is below the round-off of the largest is none.
    values = values[values > len(values) * np.finfo(kernel.dtype).eps * values[0]]
    spectrum.loglog(np.arange(1, len(values) + 1), values, ".", color=COLOURS[0])
    spectrum.set(xlabel="number", ylabel="eigenvalue")
    return figure


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
        a.tick_params(colors=_INK, labelsize=9)
        a.grid(True, color=_GRID, lw=0.7)
        a.set_axisbelow(True)
    return list(axes)


def _colours_by_width(widths: Sequence[int]) -> dict[int, Any]:
    # From light (narrow) to dark (wide), monotone in lightness: it also prints in grey.
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.08, 0.85, len(widths)))
    return dict(zip(widths, shades, strict=True))


def band(axes: Axes, mean: Any, low: Any, high: Any, colour: Any, steps: Any = None) -> None:
    """A line with a band from `low` to `high`; `steps` are the places, by default 0, 1, ..."""
    steps = np.arange(len(mean)) if steps is None else np.asarray(steps)
    axes.fill_between(steps, low, high, color=colour, alpha=0.25, lw=0)
    axes.plot(steps, mean, color=colour, lw=1.5, solid_capstyle="round", zorder=3)
    if np.issubdtype(steps.dtype, np.integer):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _thin_lines(axes: Axes, curves: np.ndarray, colour: Any) -> None:
    """One line per seed; `curves` has the shape (seeds, steps)."""
    axes.plot(curves.T, color=colour, lw=0.9, alpha=0.6, solid_capstyle="round")


def _legend(axes: Axes, colours: Mapping[int, Any]) -> None:
    for n, colour in colours.items():
        axes.plot([], [], color=colour, lw=2.0, label=f"n = {n}")
    axes.plot([], [], color=_INK, lw=2.2, label="n = ∞")
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
    centre_x, centre_y = (np.exp(np.mean(np.log(a[known]))) for a in (widths, values))
    guide = centre_y * (widths / centre_x) ** -0.5
    axes.plot(widths, guide, color=_GUIDE, lw=1.2, ls=(0, (4, 3)), label="slope −1/2")
    if np.isfinite(slope):
        text = f"fitted slope {_signed(slope)}"
        text += f" ± {slope_stderr:.3f}" if np.isfinite(slope_stderr) else ""
        axes.plot(widths, centre_y * (widths / centre_x) ** slope, color=_FIT, lw=1.6, label=text)
    bars = np.where(np.isfinite(errors), errors, 0.0)
    for n, y, e in zip(widths[known], values[known], bars[known], strict=True):
        # A bar below zero has no place on a logarithmic axis.
        lower = min(e, 0.95 * y)
        axes.errorbar(
            n, y, yerr=[[lower], [e]], fmt="o", ms=5.5, color=colours[int(n)], ecolor=_INK,
            elinewidth=0.9, mec=_INK, mew=0.6, zorder=3,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=9)


def _signed(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")
