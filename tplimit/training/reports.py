"""What a comparison shows: tables with sentences, numbers for JSON, a figure.

These functions take a `Comparison`, which is made of what stands below.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.output import estimates
from tplimit.output.numbers import shorthand
from tplimit.output.statistics import mean_squares, z_summary
from tplimit.output.tables import TextTable
from tplimit.training.portable import plain
from tplimit.training.trajectory import width_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure", "report", "table"]

_DISTANCES = (
    "rms", "rms_stderr", "size", "relative", "slope", "slope_stderr", "rms_by_step",
    "rms_by_step_stderr", "rms_by_entry",
)  # fmt: skip
_ROWS = 20
_FEW = 6


# --- numbers


def report(comparison: Any) -> dict[str, Any]:
    """See `Comparison.to_dict`."""
    limit, finite = comparison.limit, comparison.finite
    own = lambda records: getattr(records, comparison.part)
    found: dict[str, Any] = {
        "quantity": comparison.part,
        "widths": list(finite),
        "seeds": {n: t.count for n, t in finite.items()},
        "random": comparison.random,
        "error": None if comparison.error is None else str(comparison.error),
        "not_finite": comparison.not_finite,
        "powers": own(comparison.powers),
        "powers_stderr": own(comparison.powers_stderr),
        "limit": None,
        "finite": {n: own(t) for n, t in finite.items()},
        "finite_stderr": {n: own(t.stderr) for n, t in finite.items()},
        "finite_records": {n: t.record for n, t in finite.items()},
    }
    if limit is not None:
        found |= {
            "limit_replicates": limit.count,
            "limit": own(limit),
            "limit_stderr": own(limit.stderr),
            "record": limit.record,
            "bias": comparison.bias,
            "z_scores": z_summary(comparison.z_scores),
            "extrapolated_z": z_summary(comparison.extrapolated_z),
        }
        if comparison.random:
            found["law"] = {n: vars(law) for n, law in comparison.law.items()}
        else:
            found |= {name: getattr(comparison, name) for name in _DISTANCES}
    return plain(found)


# --- tables


def table(comparison: Any, by: str | None) -> TextTable:
    """See `Comparison.table`."""
    if by is not None:
        arguments.one_of("by", by, ("step", "entry"))
    if comparison.limit is None:
        return _powers(comparison)
    if by is not None:
        return _distances(comparison, by)
    return _laws(comparison) if comparison.random else _widths(comparison)


def _made(title: str, columns: Sequence[str], rows: Any, below: Sequence[str]) -> TextTable:
    from rich.table import Table  # slow to import
    from rich.text import Text

    made = Table(title=title, title_justify="left")
    for name in columns:
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))  # names are no markup
    return TextTable(made, "\n".join(below))


def _widths(comparison: Any) -> TextTable:
    names = "width", "seeds", "RMS distance", "± std. error", "relative", "√n · RMS", "bias"
    rows = []
    for n, run in comparison.finite.items():
        rms, bias = comparison.rms[n], comparison.bias[n]
        numbers = rms, comparison.rms_stderr[n], comparison.relative[n], np.sqrt(n) * rms
        rows.append([n, run.count, *(f"{x:.4g}" for x in numbers), _or_noise(bias)])
    below = [*_lost(comparison), _slope(comparison), *_deviations(comparison)]
    return _made("finite networks against the limit", names, rows, below)


def _laws(comparison: Any) -> TextTable:
    names = (
        "width", "seeds", "distance of means", "max |z|", "covariance", "p", "KS: smallest p",
        "p < 0.05",
    )  # fmt: skip
    rows = []
    for n, law in sorted(comparison.law.items()):
        p = _values(law.ks_p)
        p = p[~np.isnan(p)]
        rows.append([
            n, comparison.finite[n].count, _or_noise(comparison.bias[n]),
            f"{z_summary(law.mean_z)['max']:.2f}", _or_noise(law.covariance),
            f"{law.covariance_p:.3g}", f"{np.min(p):.3g}" if p.size else "-",
            f"{100 * np.mean(p < 0.05):.1f} %" if p.size else "-",
        ])  # fmt: skip
    largest = max(comparison.law)
    law, replicates = comparison.law[largest], comparison.limit.count
    below = [
        *_lost(comparison),
        f"the limit is a random function: networks agree with it in law, {replicates} replicates",
        f"Kolmogorov-Smirnov: {law.entries} entries, each by itself; if the laws agree, the "
        f"smallest p is below {0.05 / max(law.entries, 1):.2g} with probability 0.05 at most",
    ]
    if law.entries and law.least_p > 0.05 / law.entries:
        below.append(
            f"no p can be below {law.least_p:.2g} with {replicates} replicates and "
            f"{comparison.finite[largest].count} seeds: more of both see more"
        )
    if law.fixed:
        below.append(
            f"{law.fixed} entries vary in the limit less than a tenth of what networks do: "
            "averages, whose limit is a number, belong into a comparison of their own"
        )
    return _made("finite networks against the law of the limit", names, rows, below)


def _distances(comparison: Any, by: str) -> TextTable:
    """A column for each width; rows are steps or entries."""
    widths = sorted(comparison.finite)
    columns = {n: _column(comparison, n, by) for n in widths}
    last = columns[widths[-1]]
    if by == "step":
        names, kind = list(map(str, range(len(last)))), "steps, evenly"
        shown = _evenly(len(last))
    else:
        names, kind = _entries(comparison), "entries, the farthest at the largest width"
        shown = np.sort(np.argsort(np.nan_to_num(-last, nan=-np.inf), kind="stable")[:_ROWS])
    rows = [[names[i], *(f"{columns[n][i]:.4g}" for n in widths)] for i in shown]
    below = _lost(comparison)
    if len(shown) < len(last):
        below = [*below, f"{len(shown)} of {len(last)} {kind}"]
    what = "largest |z| of the means" if comparison.random else "RMS distance"
    return _made(f"{what} by {by}", [by, *(f"n = {n}" for n in widths)], rows, below)


def _column(comparison: Any, n: int, by: str) -> np.ndarray:
    """What a width has at each step, or in each entry."""
    if comparison.random:
        # Deviations of the means: they have a unit, and can vanish in the noise.
        z = [x.reshape(len(x), -1) for x in jax.tree.leaves(comparison.law[n].mean_z)]
        return _largest(np.concatenate(z, axis=1), axis=1 if by == "step" else 0)
    if by == "step":
        return comparison.rms_by_step[n]
    return _values(comparison.rms_by_entry[n])


def _powers(comparison: Any) -> TextTable:
    """Sizes at two widths and the power of n, by record and step."""
    widths = sorted(comparison.finite)
    ends = [widths[0], widths[-1]] if len(widths) > 1 else widths
    rows = []
    for part in ("observations", "outputs"):
        fits = [
            jax.tree_util.tree_leaves_with_path(getattr(tree, part))
            for tree in (comparison.powers, comparison.powers_stderr)
        ]
        leaves = [jax.tree.leaves(getattr(comparison.finite[n].replicates, part)) for n in ends]
        for (path, power), (_, error), *own in zip(*fits, *leaves, strict=True):
            name = part + jax.tree_util.keystr(path)
            sizes = [np.sqrt(np.mean(mean_squares(x), axis=0)) for x in own]
            for t in _evenly(len(power), _ROWS // 2):
                numbers = [f"{size[t]:.4g}" for size in sizes]
                rows.append([name, t, *numbers, _exponent(power[t], error[t])])
    why = comparison.error
    below = [
        *_lost(comparison),
        "no limit: " + ("none was given" if why is None else str(why)),
        "powers: least squares over widths "
        f"{', '.join(map(str, widths))}, of the root mean square over seeds and entries",
    ]
    names = "record", "step", *(f"n = {n}" for n in ends), "power of n"
    return _made("finite networks; no limit is known", names, rows, below)


def _exponent(power: float, error: float) -> str:
    if not np.isfinite(power):
        return "-"
    return f"n^{shorthand(power, error) if error > 1e-6 else format(power, '.3f')}"


def _lost(comparison: Any) -> list[str]:
    return [
        f"records are not finite at {width_label(n)}, replicates {', '.join(map(str, seeds))}"
        for n, seeds in comparison.not_finite.items()
    ]


def _slope(comparison: Any) -> str:
    if np.isfinite(comparison.slope):
        fit = f"{comparison.slope:.3f} ± {comparison.slope_stderr:.3f}"
        return f"fitted slope {fit} (theory: -1/2)"
    reasons = {
        "not finite": [n for n, rms in comparison.rms.items() if not np.isfinite(rms)],
        "below the noise": [n for n, rms in comparison.rms.items() if rms == 0],
    }
    for reason, widths in reasons.items():
        if widths:
            listed = ", ".join(map(str, widths))
            return f"no slope: the distance is {reason} at width {listed}"
    return "no slope: it takes two widths"


def _deviations(comparison: Any) -> list[str]:
    widths = sorted(comparison.finite)
    lines = []
    for name, tree, used in (
        (f"z at width {widths[-1]}", comparison.z_scores, widths[-1:]),
        ("z after fitting f + b/n", comparison.extrapolated_z, widths),
    ):
        z = z_summary(tree)
        line = f"{name}: nothing to compare"
        if z["count"]:
            line = (
                f"{name}: max |z| = {z['max']:.2f}, |z| < 2 in {100 * z['below_2']:.1f} % of "
                f"{z['count']} comparisons"
            )
        runs = [comparison._limit_statistics[0][None], *(comparison._flat[n] for n in used)]
        lost = np.sum(~np.all([np.all(np.isfinite(x), axis=0) for x in runs], axis=0))
        lines.append(line + (f"; {lost} entries are not finite" if lost else ""))
    return lines


def _values(tree: Any) -> np.ndarray:
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _or_noise(distance: float) -> str:
    return "< noise" if distance == 0 else f"{distance:.4g}"


def _largest(z: np.ndarray, axis: int) -> np.ndarray:
    """The largest modulus along an axis of what is a number; NaN where nothing is."""
    largest = np.max(np.where(np.isnan(z), -1.0, np.abs(z)), axis=axis)
    return np.where(largest < 0, np.nan, largest)


def _entries(comparison: Any) -> list[str]:
    """Names of the entries of the records: path and indices."""
    records = getattr(comparison._reference.replicates, comparison.part)
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(records):
        for index in np.ndindex(leaf.shape[2:]):
            where = f"[{','.join(map(str, index))}]" if index else ""
            names.append(f"{comparison.part}{jax.tree_util.keystr(path)}{where}")
    return names


def _evenly(count: int, most: int = _ROWS) -> np.ndarray:
    """At most so many indices, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


# --- the figure


def figure(comparison: Any, label: str) -> "Figure":
    """See `Comparison.plot`."""
    from tplimit.output.figures import (  # Matplotlib is slow to import
        comparison_figure,
        powers_figure,
    )

    leaves = comparison._leaves
    index = max(range(len(leaves)), key=lambda i: leaves[i].ndim)

    def curves(records: Any) -> np.ndarray:
        leaf = jax.tree.leaves(getattr(records, comparison.part))[index]
        return leaf.reshape(*leaf.shape[:2], -1)

    finite = {n: curves(t.replicates) for n, t in sorted(comparison.finite.items())}
    limit = comparison.limit
    if limit is None:
        fitted = jax.tree.leaves(getattr(comparison.powers, comparison.part))[index]
        sizes = {n: np.sqrt(mean_squares(x)) for n, x in finite.items()}
        steps = [int(t) for t in _evenly(len(fitted), _FEW)]
        return powers_figure(sizes, fitted, steps, label)
    values = curves(limit.replicates)
    middle = estimates.mean(values)
    low, high = (end(values) for end in estimates.interval(0.95, limit.count))
    if comparison.random:
        spread = 2 * limit.count**0.5 * estimates.standard_error(values)
        return comparison_figure(
            finite, middle, middle - spread, middle + spread, {}, {}, np.nan, np.nan,
            label=label, random=True,
        )  # fmt: skip
    return comparison_figure(
        finite, middle, low, high, comparison.rms, comparison.rms_stderr, comparison.slope,
        comparison.slope_stderr, label=label,
    )  # fmt: skip
