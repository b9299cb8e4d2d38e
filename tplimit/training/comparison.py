"""Finite networks of increasing width against their limit, in units of the statistical error."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tplimit.arguments import inf
from tplimit.errors import DivergenceError, LimitError
from tplimit.output.estimates import quiet
from tplimit.output.files import warn_of_suffix, write_text
from tplimit.output.statistics import (
    intercept_weights,
    mean_squares,
    normal_deviate,
    power,
    root,
    root_error,
)
from tplimit.output.tables import TextTable
from tplimit.training import archive, reports
from tplimit.training.laws import Law, compare_laws
from tplimit.training.records import Records
from tplimit.training.trajectory import Trajectory

__all__ = ["Comparison", "shapes"]


def shapes(tree: Any, axes: int = 0) -> str:
    """A tree of records as text: the shapes of its arrays without so many leading axes."""
    return str(jax.tree.map(lambda leaf: f"array{tuple(leaf.shape[axes:])}", tree)).replace("'", "")


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

    Where the limit is a random function (`random`), networks agree with it in law, and a distance
    from its mean cannot vanish: `law` takes the place of `rms` and all that is made of it. Where
    the program grows with the width there is no limit: `powers` say how fast.

    Args:
        limit: the trajectory at infinite width; None where none is known.
        finite: by width, the trajectory of its seeds.
        error: why there is no limit: a `DivergenceError` or a `CancellationError`.

    Raises:
        ValueError: the runs have not recorded the same.

    >>> import numpy as np
    >>> def run(width, values):
    ...     return Trajectory(Records(values, None), Records(0, None), width)
    >>> by_hand = Comparison(
    ...     run(inf, np.full((2, 1, 1), 2.0)),
    ...     {n: run(n, np.full((2, 1, 1), 2 + n**-0.5)) for n in (64, 256)},
    ... )
    >>> by_hand.rms, by_hand.relative[64], round(by_hand.slope, 6)
    ({64: 0.125, 256: 0.0625}, 0.0625, -0.5)
    """

    limit: Trajectory | None
    finite: Mapping[int, Trajectory]
    error: LimitError | None = None

    def __post_init__(self) -> None:
        runs = [t for t in (self.limit, *self.finite.values()) if t is not None]
        for run in runs[1:]:
            texts = [shapes(getattr(t.replicates, self.part), axes=1) for t in (runs[0], run)]
            if texts[0] != texts[1]:
                raise ValueError(
                    f"the runs have recorded different {self.part}: {texts[0]} at "
                    f"{runs[0].label}, {texts[1]} at {run.label} (first axis: steps)"
                )

    @property
    def random(self) -> bool:
        """Whether the limit is a random function, another one in each replicate."""
        return self.limit is not None and self.limit.random

    @property
    def part(self) -> str:
        """The records that are compared: "observations", or "outputs" without any."""
        return self._reference.part

    # --- distances

    @cached_property
    @quiet
    def rms(self) -> dict[int, float]:
        """By width, the root mean square distance over steps, points and seeds.

        Raises (as all that is made of it):
            ValueError: the limit is random.
            LimitError: there is no limit, `error`.
        """
        return {n: root(np.mean(squares)) for n, squares in self._squares.items()}

    @cached_property
    @quiet
    def rms_stderr(self) -> dict[int, float]:
        """By width, the standard error of `rms` over seeds (delta method); NaN for one seed."""
        return {n: root_error(np.mean(x, axis=1)) for n, x in self._squares.items()}

    @cached_property
    @quiet
    def size(self) -> float:
        """Root mean square of the limit over steps and points, its noise subtracted."""
        self._number()
        mean, noise = self._limit_statistics
        return root(np.mean(mean**2 - noise))

    @cached_property
    def relative(self) -> dict[int, float]:
        """By width, `rms` in units of `size`; NaN where the limit is 0.

        The unit is the size of the limit itself, over all that is compared: 0.1 is a distance of
        ten per cent of the recorded values. Observe what has moved, such as f_t - f_0, to have that
        as the unit; and what has other units in a comparison of its own.
        """
        return {n: rms / self.size if self.size > 0 else np.nan for n, rms in self.rms.items()}

    @cached_property
    @quiet
    def rms_by_step(self) -> dict[int, np.ndarray]:
        """By width, an array: the root mean square distance over points and seeds at each step."""
        return {n: root(np.mean(x, axis=0)) for n, x in self._squares_by_step.items()}

    @cached_property
    def rms_by_step_stderr(self) -> dict[int, np.ndarray]:
        """By width, the standard errors of `rms_by_step` over seeds."""
        return {n: root_error(x) for n, x in self._squares_by_step.items()}

    @cached_property
    @quiet
    def rms_by_entry(self) -> dict[int, Any]:
        """By width, the root mean square distance over steps and seeds of each entry.

        A tree like the records, without the axis of the steps.
        """

        def over_steps(squares: np.ndarray) -> Any:
            return root(np.mean(squares, axis=0))

        return {
            n: jax.tree.map(over_steps, self._unflatten(np.mean(x, axis=0)))
            for n, x in self._squares.items()
        }

    @cached_property
    @quiet
    def bias(self) -> dict[int, float]:
        """By width, the root mean square of (mean over seeds - limit), its noise subtracted."""
        mean, noise = self._limit_statistics
        result = {}
        for n, values in self._flat.items():
            own = np.var(values, axis=0, ddof=1) / len(values) if len(values) > 1 else 0.0
            result[n] = root(np.mean((np.mean(values, axis=0) - mean) ** 2 - own - noise))
        return result

    @cached_property
    def slope(self) -> float:
        """Least-squares slope of log(rms) against log(width).

        NaN where an `rms` is 0 or not finite, and of one width; the table then says why.
        """
        return float(self._fit[0])

    @cached_property
    def slope_stderr(self) -> float:
        """Standard error of `slope`, by a jackknife over the seeds of every width.

        The slope is linear in log(rms), and the seeds of different widths are independent, so the
        variances of log(rms) add up with the squares of the fit's weights. NaN for one seed.
        """
        return float(self._fit[1])

    # --- differences in units of their errors, and laws

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
        return self._unflatten(self._deviates(intercept_weights(list(self._flat))))

    @cached_property
    def law(self) -> dict[int, Law]:
        """By width, the law of the networks beside that of a random limit: mean, covariance, KS.

        Raises:
            ValueError: the limit is not random.
            LimitError: there is no limit, `error`.
        """
        limit = self._given()
        if not limit.random:
            raise ValueError("the limit is a number for each entry, not a law: see rms, z_scores")
        values = self._matrix(limit)
        return {n: compare_laws(x, values, self._unflatten) for n, x in self._flat.items()}

    # --- powers of the width

    @cached_property
    def powers(self) -> Records:
        """The power of n that each record follows, step by step; they need no limit.

        `Records` with trees like `outputs` and `observations`, a number for each leaf and step: the
        least-squares slope of log(root mean square over seeds and entries) against log(width). NaN
        of one width, and where a record is 0 or not finite.
        """
        return self._powers(0)

    @cached_property
    def powers_stderr(self) -> Records:
        """Standard errors of `powers`, by a jackknife over seeds; NaN for one seed."""
        return self._powers(1)

    def _powers(self, which: int) -> Records:
        runs = sorted(self.finite.items())

        def fit(*leaves: np.ndarray) -> np.ndarray:
            squares = map(mean_squares, leaves)
            return power(dict(zip([n for n, _ in runs], squares, strict=True)))[which]

        return Records.zip(fit, *(t.replicates for _, t in runs))

    # --- what is shown and saved

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of what the runs used, for `tplimit.cite`."""
        return () if self.limit is None else self.limit.cites

    def __repr__(self) -> str:
        widths = f"widths={list(self.finite)}"
        if self.limit is None:
            return f"Comparison({widths}, no limit)"
        what = "random limit" if self.random else f"slope={self.slope:.3f}"
        return f"Comparison({widths}, {what})"

    def table(self, by: str | None = None) -> TextTable:
        """The statistics as a string, drawn with borders on a rich console.

        Args:
            by: None: a row for each width; "step": distances by step, a column for each width;
                "entry": the same by entry. Of more than 20 steps some are shown, evenly, of more
                entries those that are farthest at the largest width. With a random limit these
                distances are the differences of the means in standard errors; without a limit
                both show the powers of n.

        Raises:
            ValueError: `by` is something else.
        """
        return reports.table(self, by)

    def __str__(self) -> str:
        return str(self.table())

    def to_dict(self) -> dict[str, Any]:
        """All statistics as numbers, lists and dicts, ready for JSON; NaN becomes None.

        What does not apply is left out: of a random limit distances (`law` takes their place),
        of no limit both.
        """
        return reports.report(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write two files of one name: `to_dict()` as JSON, and beside it all runs for `load`.

        `result.json` is for whoever reads, `result.safetensors` has the records of every network
        and replicate, without pickle. `path` may name either; without a suffix the JSON file has
        none. States are not saved. Records have to be trees as in `Trajectory.save`.

        Returns:
            `path`.

        Raises:
            TypeError: the records contain another kind of tree.
            OSError: a file cannot be written; then an older one is unchanged.

        Warns:
            LimitWarning: the name has the suffix of another kind of file.
        """
        target = Path(path)
        if target.suffix != archive.SUFFIX:
            warn_of_suffix(target, ".json", f"all records are in {target.stem}{archive.SUFFIX}")
        archive.write(target, self.limit, self.finite, self.error)
        text = target.with_suffix(".json") if target.suffix == archive.SUFFIX else target
        write_text(text, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Comparison":
        """Read what `save` wrote, by either name; states are not in it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, damaged, no comparison, of a newer version, or a JSON file
                alone: that holds means and statistics, from which no comparison can be made.
        """
        return archive.read(path, cls)

    def plot(self, path: str | os.PathLike[str], label: str | None = None) -> Path:
        """Write the figure: trajectories closing on the limit, and log-log distance by width.

        The suffix of `path` chooses the format. The band of the limit is its 95 % confidence
        interval; that of a random limit is its mean ± 2 standard deviations over replicates, and
        no distance is shown. Without a limit the sizes of the networks are shown by width, with the
        fitted powers. `label` says what an entry of the records is, by default "observation" or
        "output"; of several leaves the one with most axes is shown.
        """
        from tplimit.output.figures import save_figure  # Matplotlib is slow to import

        return save_figure(reports.figure(self, label or self.part.removesuffix("s")), path)

    # --- the limit, or why there is none

    def _given(self) -> Trajectory:
        """The limit.

        Raises:
            LimitError: there is none, `error`.
        """
        if self.limit is not None:
            return self.limit
        why = self.error or DivergenceError("There is no limit to compare with.")
        raise why.at(why.location)

    def _number(self) -> Trajectory:
        """The limit, where it is a number for each entry.

        Raises:
            ValueError: it is random.
            LimitError: there is none, `error`.
        """
        limit = self._given()
        if limit.random:
            raise ValueError(
                "the limit is a random function, another one in each replicate: the distance of "
                "networks from its mean does not vanish. See law, bias (of the means) and z_scores"
            )
        return limit

    # --- the records as matrices (seed, entry): statistics treat all leaves alike

    @property
    def _reference(self) -> Trajectory:
        """A run, for what is the same of all."""
        return next(iter(self.finite.values())) if self.limit is None else self.limit

    @cached_property
    def _leaves(self) -> list[np.ndarray]:
        return jax.tree.leaves(getattr(self._reference, self.part))

    def _matrix(self, trajectory: Trajectory) -> np.ndarray:
        leaves = jax.tree.leaves(getattr(trajectory.replicates, self.part))
        return np.concatenate([x.reshape(len(x), -1).astype(float) for x in leaves], axis=1)

    @cached_property
    def _flat(self) -> dict[int, np.ndarray]:
        return {n: self._matrix(t) for n, t in sorted(self.finite.items())}

    @cached_property
    @quiet
    def _limit_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the limit and its squared standard error, both per entry."""
        values = self._matrix(self._given())
        known = len(values) > 1
        noise = np.var(values, axis=0, ddof=1) / len(values) if known else np.zeros(values.shape[1])
        return np.mean(values, axis=0), noise

    @cached_property
    @quiet
    def _squares(self) -> dict[int, np.ndarray]:
        """By width, per seed and entry: squared distance, noise subtracted."""
        self._number()
        mean, noise = self._limit_statistics
        return {n: (x - mean) ** 2 - noise for n, x in self._flat.items()}

    @cached_property
    @quiet
    def _squares_by_step(self) -> dict[int, np.ndarray]:
        """By width, per seed and step: mean squared distance over the entries."""
        steps = [np.repeat(np.arange(len(x)), x.size // len(x)) for x in self._leaves]
        of_entry = np.concatenate(steps)
        counts = np.bincount(of_entry)
        return {
            n: np.stack([np.bincount(of_entry, row) for row in x]) / counts
            for n, x in self._squares.items()
        }

    @cached_property
    @quiet
    def _fit(self) -> tuple[np.ndarray, np.ndarray]:
        return power({n: np.mean(x, axis=1) for n, x in self._squares.items()})

    @quiet
    def _deviates(self, weights: Mapping[int, float]) -> np.ndarray:
        """Normal deviates of Σ_n weights[n]·(mean over seeds at n) - limit."""
        mean, noise = self._limit_statistics
        difference, terms = -mean, [(noise, self._given().count - 1)]
        for n, weight in weights.items():
            values = self._flat[n]
            if len(values) < 2:
                return np.full_like(mean, np.nan)
            difference = difference + weight * np.mean(values, axis=0)
            variance = np.var(values, axis=0, ddof=1) / len(values)
            terms.append((weight**2 * variance, len(values) - 1))
        return normal_deviate(difference, terms)

    def _unflatten(self, entries: np.ndarray) -> Any:
        ends = np.cumsum([leaf.size for leaf in self._leaves])[:-1]
        parts = [
            part.reshape(leaf.shape)
            for part, leaf in zip(np.split(entries, ends), self._leaves, strict=True)
        ]
        tree = jax.tree.structure(getattr(self._reference, self.part))
        return jax.tree.unflatten(tree, parts)

    @cached_property
    def not_finite(self) -> dict[int | float, list[int]]:
        """By width (`inf` for the limit), the replicates whose records are not all finite."""
        runs: list[tuple[int | float, np.ndarray]] = [*self._flat.items()]
        if self.limit is not None:
            runs.append((inf, self._matrix(self.limit)))
        seeds = {n: np.flatnonzero(~np.all(np.isfinite(x), axis=1)) for n, x in runs}
        return {n: lost.tolist() for n, lost in seeds.items() if lost.size}
