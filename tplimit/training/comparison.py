"""Finite networks of increasing width against their limit, in units of the statistical error."""

import inspect
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.errors import LimitWarning, warn
from tplimit.output.files import warn_of_suffix, write_text
from tplimit.training.checkpoint import Checkpoint
from tplimit.training.estimates import quiet
from tplimit.training.train import Step, train
from tplimit.training.trajectory import Trajectory, width_label
from tplimit.transforms.limits import align
from tplimit.transforms.sampling import width_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["Comparison", "compare"]


class TextTable(str):
    """A table and the sentences below it as plain text; a rich console draws them with colours."""

    parts: "tuple[Table, str]"

    def __new__(cls, table: "Table", below: str) -> "TextTable":
        from rich.console import Console  # slow to import

        buffer = io.StringIO()
        Console(file=buffer, width=100, color_system=None).print(table)
        text = super().__new__(cls, buffer.getvalue() + below)
        text.parts = (table, below)
        return text

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        return Group(self.parts[0], Text(self.parts[1]))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Finite networks and their limit under one program; all statistics are derived.

    They concern the observations, or the outputs of the steps where nothing was observed. F_nre is
    the record of seed r = 1..R at width n, entry e (a step and a point); L_e is the limit and s_e
    its standard error (0 where the limit has one replicate: then its Monte Carlo error is counted
    as a distance):

        rms[n]²  = mean_re (F_nre - L_e)² - mean_e s_e²
        bias[n]² = mean_e [(mean_r F_nre - L_e)² - var_r(F_nre)/R - s_e²]

    Both squares are unbiased; where one is not positive, the distance is below the noise, and its
    root is given as 0.

    Args:
        limit: the trajectory at infinite width.
        finite: by width, the trajectory of its seeds.
    """

    limit: Trajectory
    finite: Mapping[int, Trajectory]

    @cached_property
    @quiet
    def rms(self) -> dict[int, float]:
        """By width, the root mean square distance over steps, points and seeds."""
        return {n: _root(np.mean(squares)) for n, squares in self._squares.items()}

    @cached_property
    def rms_stderr(self) -> dict[int, float]:
        """By width, the standard error of `rms` over seeds (delta method); NaN for one seed."""
        return {
            n: _standard_error(squares) / (2 * self.rms[n]) if self.rms[n] > 0 else np.nan
            for n, squares in self._squares.items()
        }

    @cached_property
    @quiet
    def bias(self) -> dict[int, float]:
        """By width, the root mean square of (mean over seeds - limit), its noise subtracted."""
        mean, noise = self._limit_statistics
        result = {}
        for n, values in self._flat.items():
            own = np.var(values, axis=0, ddof=1) / len(values) if len(values) > 1 else 0.0
            result[n] = _root(np.mean((np.mean(values, axis=0) - mean) ** 2 - own - noise))
        return result

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of what the runs used, for `tplimit.cite`."""
        return self.limit.cites

    def __repr__(self) -> str:
        return f"Comparison(widths={list(self.finite)}, slope={self.slope:.3f})"

    @cached_property
    def slope(self) -> float:
        """Least-squares slope of log(rms) against log(width).

        NaN where an `rms` is 0 or not finite, and of one width; the table then says why.
        """
        return float(_slope_weights(self.rms) @ _logs(self.rms.values()))

    @cached_property
    def slope_stderr(self) -> float:
        """Standard error of `slope`, by a jackknife over the seeds of every width.

        The slope is linear in log(rms), and the seeds of different widths are independent, so the
        variances of log(rms) add up with the squares of the fit's weights. NaN for one seed.
        """
        variances = [_jackknife_variance_of_log(squares) for squares in self._squares.values()]
        return float(np.sqrt(_slope_weights(self.rms) ** 2 @ np.array(variances)))

    @cached_property
    def z_scores(self) -> Any:
        """Mean over seeds minus limit in standard errors, at the largest width.

        A tree like the records. Welch's t with the combined standard error, turned into the normal
        deviate of the same tail probability, so that ±2 means the same for 4 seeds as for 400. It
        is 0 where both agree exactly, NaN for one seed and where a record is not finite.
        """
        largest = max(self._flat)
        return self._unflatten(self._deviates({largest: 1.0}))

    @cached_property
    def extrapolated_z(self) -> Any:
        """Like `z_scores` for the intercept f of a fit f + b/n over all widths.

        The fit weighs a width by n, as if variances fell as 1/n; the error is that of the seeds,
        whatever their variances are. It removes the finite-width bias of smooth stable programs, at
        the price of a larger error. NaN with fewer than two widths.
        """
        if len(self._flat) < 2:
            return self._unflatten(np.full_like(self._limit_statistics[0], np.nan))
        return self._unflatten(self._deviates(_intercept_weights(list(self._flat))))

    def table(self) -> TextTable:
        """The statistics by width: a string, drawn with borders on a rich console."""
        from rich.table import Table  # slow to import

        table = Table(title="finite networks against the limit", title_justify="left")
        for name in ("width", "seeds", "RMS distance", "± std. error", "√n · RMS", "bias"):
            table.add_column(name, justify="right")
        for n, trajectory in self.finite.items():
            rms = self.rms[n]
            numbers = (rms, self.rms_stderr[n], np.sqrt(n) * rms)
            bias = "< noise" if self.bias[n] == 0 else f"{self.bias[n]:.4g}"
            table.add_row(str(n), str(trajectory.count), *(f"{x:.4g}" for x in numbers), bias)
        return TextTable(table, "\n".join(self._sentences()))

    def __str__(self) -> str:
        return str(self.table())

    def summary(self) -> dict[str, Any]:
        """All statistics as plain numbers, lists and dicts; NaN becomes None."""
        report = {
            "quantity": self._part,
            "widths": list(self.finite),
            "seeds": {str(n): t.count for n, t in self.finite.items()},
            "limit_replicates": self.limit.count,
            **{
                name: {str(n): v for n, v in getattr(self, name).items()}
                for name in ("rms", "rms_stderr", "bias")
            },
            "not_finite": {str(n): seeds for n, seeds in self.not_finite.items()},
            "slope": self.slope,
            "slope_stderr": self.slope_stderr,
            "record": self.limit.record,
            "finite_records": {str(n): t.record for n, t in self.finite.items()},
            "z_scores": _z_summary(self.z_scores),
            "extrapolated_z": _z_summary(self.extrapolated_z),
            "limit": _lists(self._records(self.limit)),
            "limit_stderr": _lists(getattr(self.limit.stderr, self._part)),
            "finite": {str(n): _lists(self._records(t)) for n, t in self.finite.items()},
            "finite_stderr": {
                str(n): _lists(getattr(t.stderr, self._part)) for n, t in self.finite.items()
            },
        }
        return _without_nan(report)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `summary()` as a JSON file; trajectories have their own `save`.

        Warns:
            LimitWarning: the name has the suffix of another kind of file.
        """
        target = Path(path)
        warn_of_suffix(target, ".json", "for arrays save the trajectories, limit and finite[n]")
        write_text(target, json.dumps(self.summary(), indent=1, allow_nan=False) + "\n")
        return target

    def plot(self, path: str | os.PathLike[str], label: str | None = None) -> Path:
        """Write the figure: trajectories closing on the limit, and log-log distance by width.

        The suffix of `path` chooses the format. The band of the limit is its 95 % confidence
        interval. `label` says what an entry of the records is, by default "observation" or
        "output"; of several leaves the one with most axes is shown.
        """
        from tplimit.output.figures import (  # Matplotlib is slow to import
            comparison_figure,
            save_figure,
        )

        index = max(range(len(self._leaves)), key=lambda i: self._leaves[i].ndim)

        def curves(tree: Any) -> np.ndarray:
            leaf = jax.tree.leaves(tree)[index]
            return leaf.reshape(len(leaf), -1)

        def all_curves(trajectory: Trajectory) -> np.ndarray:
            leaf = jax.tree.leaves(getattr(trajectory.replicates, self._part))[index]
            return leaf.reshape(*leaf.shape[:2], -1)

        low, high = (getattr(end, self._part) for end in self.limit.interval())
        figure = comparison_figure(
            {n: all_curves(t) for n, t in self.finite.items()},
            curves(self._records(self.limit)),
            curves(low),
            curves(high),
            self.rms,
            self.rms_stderr,
            self.slope,
            self.slope_stderr,
            label=label or self._part.removesuffix("s"),
        )
        return save_figure(figure, path)

    # The records as matrices (seed, entry): statistics treat all leaves alike.

    @property
    def _part(self) -> str:
        return "observations" if jax.tree.leaves(self.limit.replicates.observations) else "outputs"

    def _records(self, trajectory: Trajectory) -> Any:
        return getattr(trajectory, self._part)

    @cached_property
    def _leaves(self) -> list[np.ndarray]:
        return jax.tree.leaves(self._records(self.limit))

    def _matrix(self, trajectory: Trajectory) -> np.ndarray:
        leaves = jax.tree.leaves(getattr(trajectory.replicates, self._part))
        return np.concatenate([x.reshape(len(x), -1).astype(float) for x in leaves], axis=1)

    @cached_property
    def _flat(self) -> dict[int, np.ndarray]:
        return {n: self._matrix(t) for n, t in sorted(self.finite.items())}

    @cached_property
    @quiet
    def _limit_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the limit and its squared standard error, both per entry."""
        values = self._matrix(self.limit)
        known = len(values) > 1
        noise = np.var(values, axis=0, ddof=1) / len(values) if known else np.zeros(values.shape[1])
        return np.mean(values, axis=0), noise

    @cached_property
    @quiet
    def _squares(self) -> dict[int, np.ndarray]:
        """By width, per seed: mean squared distance over the entries, noise subtracted."""
        mean, noise = self._limit_statistics
        return {n: np.mean((x - mean) ** 2 - noise, axis=1) for n, x in self._flat.items()}

    @quiet
    def _deviates(self, weights: Mapping[int, float]) -> np.ndarray:
        """Normal deviates of Σ_n weights[n]·(mean over seeds at n) - limit."""
        mean, noise = self._limit_statistics
        difference, terms = -mean, [(noise, self.limit.count - 1)]
        for n, weight in weights.items():
            values = self._flat[n]
            if len(values) < 2:
                return np.full_like(mean, np.nan)
            difference = difference + weight * np.mean(values, axis=0)
            variance = np.var(values, axis=0, ddof=1) / len(values)
            terms.append((weight**2 * variance, len(values) - 1))
        return _normal_deviate(difference, terms)

    def _unflatten(self, entries: np.ndarray) -> Any:
        ends = np.cumsum([leaf.size for leaf in self._leaves])[:-1]
        parts = [
            part.reshape(leaf.shape)
            for part, leaf in zip(np.split(entries, ends), self._leaves, strict=True)
        ]
        tree = jax.tree.structure(self._records(self.limit))
        return jax.tree.unflatten(tree, parts)

    @cached_property
    def not_finite(self) -> dict[int | float, list[int]]:
        """By width (`inf` for the limit), the replicates whose records are not all finite."""
        runs = [*self._flat.items(), (inf, self._matrix(self.limit))]
        seeds = {n: np.flatnonzero(~np.all(np.isfinite(x), axis=1)) for n, x in runs}
        return {n: lost.tolist() for n, lost in seeds.items() if lost.size}

    def _sentences(self) -> list[str]:
        widths, largest = list(self._flat), max(self._flat)
        lines = [
            f"records are not finite at {width_label(n)}, replicates {', '.join(map(str, seeds))}"
            for n, seeds in self.not_finite.items()
        ]
        lines.append(self._slope_sentence())
        for name, tree, used in (
            (f"z at width {largest}", self.z_scores, [largest]),
            ("z after fitting f + b/n", self.extrapolated_z, widths),
        ):
            z = _z_summary(tree)
            line = f"{name}: nothing to compare"
            if z["count"]:
                line = (
                    f"{name}: max |z| = {z['max']:.2f}, |z| < 2 in {100 * z['below_2']:.1f} % of "
                    f"{z['count']} comparisons"
                )
            runs = [self._limit_statistics[0][None], *(self._flat[n] for n in used)]
            lost = np.sum(~np.all([np.all(np.isfinite(x), axis=0) for x in runs], axis=0))
            lines.append(line + (f"; {lost} entries are not finite" if lost else ""))
        return lines

    def _slope_sentence(self) -> str:
        if np.isfinite(self.slope):
            return f"fitted slope {self.slope:.3f} ± {self.slope_stderr:.3f} (theory: -1/2)"
        reasons = {
            "not finite": [n for n, rms in self.rms.items() if not np.isfinite(rms)],
            "below the noise": [n for n, rms in self.rms.items() if rms == 0],
        }
        for reason, widths in reasons.items():
            if widths:
                listed = ", ".join(map(str, widths))
                return f"no slope: the distance is {reason} at width {listed}"
        return "no slope: it takes two widths"


def compare(
    step: Step,
    theta: Any,
    batches: Any,
    *,
    widths: Sequence[int],
    seeds: int,
    key: jax.Array,
    replicates: int = 4,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fluctuations: bool = False,
    **options: Any,
) -> Comparison:
    """Train networks of several finite widths, and their limit, with one and the same program.

    Args:
        step, theta, batches: as in `tplimit.train`.
        widths: the finite widths, each an integer (the common n; all widths with ratio 1).
        seeds: independent networks per width; at least 2 for errors, 8 or more for good ones.
        key: a JAX key; every width and the limit use independent keys derived from it.
        replicates: independent samplings of the limit, for its error.
        checkpoint: as in `tplimit.train`; every width has a folder of its own inside.
        fluctuations: as in `tplimit.train`, of the limit.
        options: all other options of `tplimit.train`: init, observe, samples, noise, terms,
            mesh, progress, ...

    Raises:
        ValueError: no width, or one twice, less than one seed; and what `tplimit.train` raises.
        TypeError: an unknown option; TypeError, LimitError: as in `tplimit.train`.

    Warns:
        LimitWarning: the limit is a random function; and as `tplimit.train` of runs that blow up,
            once for each width.

    >>> import jax, jax.numpy as jnp, tplimit as tp
    >>> n = tp.Width("n")
    >>> def step(theta, _):
    ...     return theta, jnp.mean(theta["v"] ** 2)
    >>> result = compare(
    ...     step,
    ...     {"v": tp.normal((n,))},
    ...     [None],
    ...     widths=[64, 1024],
    ...     seeds=64,
    ...     key=jax.random.key(0),
    ...     samples=256,
    ...     progress=False,
    ... )
    >>> result.rms[64] > result.rms[1024]
    True
    """
    key, batches = arguments.key(key), arguments.batches(batches)
    theta = arguments.theta(declarations(theta))
    widths = [width_of(theta, n) for n in arguments.widths(widths)]
    seeds = arguments.replicates(seeds, "seeds")
    known = inspect.signature(train).parameters.keys() - {"width"}
    for name in options.keys() - known:
        near = "".join(f"; did you mean {n}?" for n in get_close_matches(name, {*known, "widths"}))
        raise TypeError(f"compare has no option {name}{near}")

    def run(width: Any, count: int, label: int, **more: Any) -> Trajectory:
        # States of all networks take memory; who asks questions of them says so.
        more |= (
            {"keep": ()} | options | {"key": jax.random.fold_in(key, label), "replicates": count}
        )
        folder = _folder_of(checkpoint, width_label(width))
        return train(step, theta, batches, width=width, checkpoint=folder, **more)

    # The limit first: a program without one is refused before hours of finite networks.
    limit = run(inf, replicates, 0, fluctuations=fluctuations)
    if limit.random:
        warn(
            LimitWarning(
                "The limit is a random function, another one in each replicate: finite networks "
                "agree with it in law, and their distances from its mean do not vanish. Compare "
                "means and spreads over `limit.replicates` and `finite[n].replicates`."
            )
        )
    align(step, limit.state, batches[0], widths=widths)
    return Comparison(limit, {n: run(n, seeds, n) for n in sorted(widths)})


def _folder_of(checkpoint: Any, label: str) -> Checkpoint | None:
    """Where one of several runs is saved."""
    if checkpoint is None:
        return None
    whole = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    return replace(whole, folder=Path(whole.folder) / label.replace(" ", "-"))


def _root(square: Any) -> float:
    return float(np.sqrt(np.maximum(square, 0.0)))


@quiet
def _standard_error(x: np.ndarray) -> float:
    return float(np.std(x, ddof=1) / np.sqrt(len(x))) if len(x) > 1 else np.nan


def _logs(values: Any) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(list(values), dtype=float))
    return np.where(np.isfinite(logs), logs, np.nan)


def _slope_weights(widths: Any) -> np.ndarray:
    """The slope of y against log(width) is this vector times y."""
    x = np.log(np.array(list(widths), dtype=float))
    x = x - np.mean(x)
    return x / np.sum(x**2) if len(x) > 1 else np.full(len(x), np.nan)


def _jackknife_variance_of_log(squares: np.ndarray) -> float:
    """Variance of ½ log(mean(squares)), from leaving out one seed at a time."""
    count = len(squares)
    if count < 2 or not np.all(np.isfinite(squares)):
        return np.nan
    logs = 0.5 * _logs((np.sum(squares) - squares).clip(0) / (count - 1))
    return float((count - 1) * np.var(logs))


def _intercept_weights(widths: Sequence[int]) -> dict[int, float]:
    """The intercept of a fit f + b/n with weights n is the sum of these times the values."""
    n = np.array(widths, dtype=float)
    design = np.stack([np.ones_like(n), 1 / n], axis=1)
    weighted = design * n[:, None]
    first = np.linalg.solve(design.T @ weighted, weighted.T)[0]
    return dict(zip(widths, first.tolist(), strict=True))


def _normal_deviate(difference: np.ndarray, terms: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Difference over its standard error, by Welch's t, as a standard normal deviate.

    `terms` are independent contributions to the variance with their degrees of freedom.
    """
    from scipy import stats  # slow to import

    variance = sum(term for term, _ in terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(difference) / np.sqrt(variance)
        degrees = variance**2 / sum(term**2 / dof for term, dof in terms if dof > 0)
        z = np.sign(difference) * stats.norm.isf(stats.t.sf(t, degrees))
    z = np.where(variance > 0, z, np.copysign(np.inf, difference))
    z = np.where(np.isfinite(difference) & np.isfinite(variance), z, np.nan)
    return np.where(difference == 0, 0.0, z)


def _z_summary(tree: Any) -> dict[str, Any]:
    """Largest |z|, share below 2 (95.4 % expected), and number, of the entries with an error.

    Entries that agree exactly, such as a function that starts at 0 by construction, are no test
    of anything and are left out.
    """
    leaves = [np.abs(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    z = np.concatenate(leaves) if leaves else np.zeros(0)
    z = z[~np.isnan(z) & (z != 0)]
    if not len(z):
        return {"max": np.nan, "below_2": np.nan, "count": 0}
    return {"max": float(np.max(z)), "below_2": float(np.mean(z < 2)), "count": len(z)}


def _lists(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.tolist(), tree)


def _without_nan(tree: Any) -> Any:
    """JSON has no NaN and no infinity. Dicts keep their order, which jax.tree would sort."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
