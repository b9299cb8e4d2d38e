"""Pictures of runs and comparisons: they take and return axes, or make a figure of their own."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.output import estimates
from tplimit.output.statistics import power, root, root_error
from tplimit.training.comparison import Comparison
from tplimit.training.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_convergence", "plot_curves"]

# Matplotlib is slow to import: tplimit.output.figures is imported where it is used.

Runs = Trajectory | Comparison | Mapping[str, Trajectory]
Entries = Sequence[int | Sequence[int]]
_STYLES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_MOST = 4


def plot_curves(
    runs: Runs,
    leaf: str | None = None,
    entries: Entries | None = None,
    *,
    level: float = 0.95,
    axes: "Axes | None" = None,
) -> "Axes":
    """Learning curves: what was recorded, step by step, with bands.

        mean ± t_{R-1}((1 + level)/2)·stderr    over the R replicates of a run, or seeds of a width

    Observations are shown, or outputs where nothing was observed. Several runs differ in colour
    where one entry is shown, else in style. A run of one replicate has no band; a random limit has
    that of its mean over initial functions.

    Args:
        runs: one run, several by name, or a comparison: its networks and its limit.
        leaf: which of several records, by its path in the tree, such as "loss" or "kernels/0"; by
            default the first one of real numbers. Beside observations an array that the step
            returned is "outputs".
        entries: indices in that record, such as 3 or (0, 1); by default those that move most and
            differently, four of them, or one of several runs.
        level: of the intervals.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: there is no run, no such record, no such entry; records are complex numbers, or
            differ in shape.
        TypeError: other arguments.

    >>> from tplimit.training.records import Records
    >>> values = {"f": np.random.default_rng(0).normal(size=(4, 6, 3)).cumsum(axis=1)}
    >>> run = Trajectory(Records(None, values), Records(None, {"f": 0}), 64)
    >>> axes = plot_curves(run, "f", [0, 2])
    >>> axes.get_ylabel(), [text.get_text() for text in axes.get_legend().get_texts()]
    ('f', ['f[0]', 'f[2]'])
    >>> axes.get_legend().get_title().get_text()
    'bands: 95 % intervals'
    """
    from tplimit.output.figures import axes_of, band, drawable, legend, most_moving

    named = _by_name(runs)
    title, values = _same_record(named, leaf)
    shape = values[-1].shape[2:]
    values = [v.reshape(*v.shape[:2], -1) for v in values]
    if entries is None:
        last = drawable(estimates.mean(values[-1]))
        shown = sorted(most_moving(last, _MOST if len(named) == 1 else 1))
    else:
        shown = [_index(entry, shape, title) for entry in entries]
    (place,) = axes_of(axes)
    names = list(named), [_text(title, i, shape) for i in shown]
    colours, styles = _looks(len(named), len(shown), isinstance(runs, Comparison))
    for k, replicates in enumerate(values):
        lower, upper = estimates.interval(level, len(replicates))
        for j, i in enumerate(shown):
            curve = replicates[:, :, i]
            mean, low, high = (drawable(f(curve)) for f in (estimates.mean, lower, upper))
            band(place, mean, low, high, colours[k][j], style=styles[k])
    by_run, by_entry = len(names[0]) > 1, len(names[1]) > 1 or len(names[0]) == 1
    for i, name in enumerate(names[1] if by_entry else ()):
        place.plot([], [], color=colours[0][i], lw=1.5, label=name)
    for k, name in enumerate(names[0] if by_run else ()):
        colour = "#555555" if by_entry else colours[k][0]
        place.plot([], [], color=colour, lw=1.5, ls=styles[k], label=name)
    place.set(xlabel="step", ylabel=title if by_entry else names[1][0])
    banded = any(len(replicates) > 1 for replicates in values)
    legend(place, f"bands: {100 * level:.3g} % intervals" if banded else "")
    return place


def plot_convergence(
    comparison: Comparison,
    leaf: str | None = None,
    entries: Entries | None = None,
    *,
    axes: "Axes | None" = None,
) -> "Axes":
    """Distances of networks to their limit by width, on logarithmic axes, with fitted slopes.

        rms² = mean over steps, entries, seeds of (F - L)² - (standard error of L)²

    as in `Comparison.rms`, of what is chosen. Bars are standard errors over seeds. A width whose
    distance is below the noise has no point, and then there is no slope. The dashed line has the
    slope -1/2 of a central limit theorem.

    Args:
        comparison: of `tplimit.compare`.
        leaf: which of several records, by its path in the tree; by default all together.
        entries: indices in that record, one line each; by default all together.
        axes: where to draw; by default in a new figure, `axes.figure`.

    Raises:
        ValueError: the limit is random; there is no such record or entry.
        LimitError: there is no limit.
        TypeError: other arguments.

    >>> from tplimit.training.records import Records
    >>> def run(width, values):
    ...     return Trajectory(Records(values, None), Records(0, None), width)
    >>> by_hand = Comparison(
    ...     run(np.inf, np.full((2, 1, 2), 2.0)),
    ...     {n: run(n, np.full((2, 1, 2), 2 + n**-0.5)) for n in (64, 256)},
    ... )
    >>> axes = plot_convergence(by_hand, entries=[1])
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['slope −1/2', 'outputs[1]: slope −0.500 ± 0.000']
    """
    from tplimit.output.figures import axes_of, distances, legend

    if not isinstance(comparison, Comparison):
        raise TypeError(f"{arguments.shown(comparison)} is no comparison: pass one of tp.compare")
    series = {
        name: _distance({n: x[:, columns].mean(axis=1) for n, x in comparison._squares.items()})
        for name, columns in _columns(comparison, leaf, entries).items()
    }
    (place,) = axes_of(axes)
    distances(place, series)
    place.set(ylabel="RMS distance to the limit")
    legend(place, "bars: standard errors over seeds")
    return place


def _distance(squares: Mapping[int, np.ndarray]) -> Any:
    """Root mean squares and their errors by width, slope and its error; squares by width, seed."""
    slope, error = map(float, power(squares))
    errors = {n: root_error(x) for n, x in squares.items()}
    return {n: root(np.mean(x)) for n, x in squares.items()}, errors, slope, error


def _by_name(runs: Any) -> dict[str, Trajectory]:
    """Runs with the names that a legend shows."""
    if isinstance(runs, Trajectory):
        return {runs.label: runs}
    if isinstance(runs, Comparison):
        limit = {} if runs.limit is None else {"n = ∞": runs.limit}
        return {f"n = {n}": run for n, run in sorted(runs.finite.items())} | limit
    if not isinstance(runs, Mapping) or not all(isinstance(r, Trajectory) for r in runs.values()):
        raise TypeError(
            f"runs={arguments.shown(runs)} is no run: pass one of tp.train, several by name "
            '{"n = ∞": run}, or a comparison'
        )
    if not runs:
        raise ValueError("runs={} has no run")
    return {str(name): run for name, run in runs.items()}


def _records(run: Trajectory, part: str) -> dict[str, np.ndarray]:
    """The replicates' records of a run by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(getattr(run.replicates, part))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or part: leaf
        for path, leaf in leaves
    }


def _named_records(run: Trajectory, first: str) -> dict[str, np.ndarray]:
    """All records by name, what was observed `first`: it goes before outputs of the same name."""
    found = _records(run, first)
    return found | {k: v for k, v in _records(run, "outputs").items() if k not in found}


def _chosen(records: Mapping[str, np.ndarray], leaf: str | None) -> str:
    """The record of that path, by default the first one of real numbers."""
    if leaf is not None:
        name = arguments.one_of("leaf", leaf, records)
        if np.iscomplexobj(records[name]):
            raise ValueError(f"{name} has complex numbers: observe their real and imaginary parts")
        return name
    for name, values in records.items():
        if np.issubdtype(values.dtype, np.floating):
            return name
    raise ValueError("nothing to plot: the run recorded no real number")


def _same_record(named: Mapping[str, Trajectory], leaf: str | None) -> tuple[str, list[np.ndarray]]:
    """The path of one record, and its arrays (R, T, ...) in all runs."""
    runs = list(named.values())
    name = _chosen(_named_records(runs[-1], runs[-1].part), leaf)
    found = []
    for label, run in named.items():
        records = _named_records(run, runs[-1].part)
        if name not in records:
            raise ValueError(f"{label} has not recorded {name!r}, but {', '.join(records)}")
        found.append(records[name])
    shapes = {values.shape[2:] for values in found}
    if len(shapes) > 1:
        raise ValueError(f"{name} has other shapes in other runs: {', '.join(map(str, shapes))}")
    return name, found


def _index(entry: Any, shape: tuple[int, ...], name: str) -> int:
    """The place of an entry in a record that is flattened; indices may count from the end."""
    index = tuple(entry) if isinstance(entry, Sequence) else (entry,)
    try:
        flat = np.arange(math.prod(shape)).reshape(shape)[index]
    except (IndexError, TypeError):
        flat = None
    if not isinstance(flat, np.integer):
        raise ValueError(
            f"{name}[{arguments.shown(entry)}] is no entry of an array of shape {shape}"
        )
    return int(flat)


def _text(name: str, place: int, shape: tuple[int, ...]) -> str:
    index = ",".join(str(i) for i in np.unravel_index(place, shape)) if shape else ""
    return f"{name}[{index}]" if shape else name


def _looks(runs: int, entries: int, compared: bool) -> tuple[list[list[Any]], list[Any]]:
    """Colours by run and entry, styles by run."""
    from tplimit.output.figures import COLOURS, INK, shades

    several = [COLOURS[i % len(COLOURS)] for i in range(max(runs, entries))]
    if entries > 1:
        return [several[:entries]] * runs, [_STYLES[k % len(_STYLES)] for k in range(runs)]
    by_run = [*shades(runs - 1), INK] if compared else several[:runs]
    return [[colour] for colour in by_run], ["-"] * runs


def _columns(
    comparison: Comparison, leaf: str | None, entries: Entries | None
) -> dict[str, np.ndarray]:
    """By name, which columns of the matrices (seed, column) of a comparison belong together."""
    records = _records(comparison._reference, comparison.part)
    sizes = [values[0].size for values in records.values()]
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    of_leaf = {
        name: place.reshape(values.shape[1:])
        for place, (name, values) in zip(places, records.items(), strict=True)
    }
    if leaf is None and (entries is None or len(of_leaf) > 1):
        if entries is not None:
            raise ValueError(f"entries are those of one record: pass leaf, one of {list(of_leaf)}")
        return {comparison.part: np.concatenate([p.ravel() for p in of_leaf.values()])}
    name = arguments.one_of("leaf", leaf, records) if leaf is not None else next(iter(of_leaf))
    if entries is None:
        return {name: of_leaf[name].ravel()}
    shape = of_leaf[name].shape[1:]
    columns = of_leaf[name].reshape(len(of_leaf[name]), -1)
    found = [_index(entry, shape, name) for entry in entries]
    return {_text(name, i, shape): columns[:, i] for i in found}
