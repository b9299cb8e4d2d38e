"""Time to reach a given error in the predictions of the limit: dense ensembles against the limit.

Three ways to estimate the limit f_t of a network with 3 hidden layers (tanh, muP, squared error,
full batch, T steps on P points), at the root-mean-square errors 1e-2, 1e-3 and 1e-4 over the steps
and the points:

- dense: the mean of K networks of width n, sampled and trained in one compiled program;
- deferred: the mean of K networks `tplimit.Deferred(n)`, which have the law of the dense ones;
- limit: the mean of R runs of `tplimit.train(width=tplimit.inf, samples=M)`.

The mean of K networks misses by bias(n)^2 + variance(n) / K. The bias falls as 1/n and is fitted to
all widths together, the variance and the time are measured at each; only K is extrapolated. The
same holds for M and R.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import Problem, Report, measure, parser, reference, rms, seconds, spread

import tplimit as tp

TARGETS = (1e-2, 1e-3, 1e-4)
#: Bytes of the parameters of the networks that are trained side by side.
MEMORY = 2**29
#: Width from which a network takes seconds, and fewer repetitions do.
SLOW = 4096
#: Runs from which a variance is taken.
ENOUGH = 30
#: Parts into which the runs of a width are divided for the jackknife.
GROUPS = 8


class Sizes(NamedTuple):
    problems: tuple[Problem, ...]
    widths: tuple[int, ...]  # dense
    deferred: tuple[int, ...]
    samples: tuple[int, ...]  # limit
    reference: tuple[int, int]  # M, R
    budget: float  # seconds of measurement per width


FULL = Sizes(
    (Problem(3, 4, 12, eta=1.0), Problem(3, 10, 50, eta=0.5)),
    tuple(2**k for k in range(5, 14)),
    tuple(2**k for k in range(8, 16)),
    tuple(2**k for k in range(8, 17)),
    (2**16, 16),
    30.0,
)
SMALL = Sizes(
    (Problem(3, 4, 6, eta=1.0),),
    (32, 64, 128, 256),
    (256,),
    (2**8, 2**11),
    (2**13, 8),
    1.5,
)


class Runs(NamedTuple):
    """What was measured at one width or number of samples."""

    size: int
    f: list[np.ndarray]  # predictions (count, T, P), in pieces
    time: float  # seconds per run
    spread: tuple[float, float]
    compilation: float
    chunk: int = 1

    @property
    def count(self) -> int:
        return sum(len(piece) for piece in self.f)

    @property
    def mean(self) -> np.ndarray:
        return np.sum([piece.sum(axis=0) for piece in self.f], axis=0) / self.count

    @property
    def variance(self) -> np.ndarray:
        """Of a single run, per step and point."""
        squares = [np.sum((piece - self.mean) ** 2, axis=0) for piece in self.f]
        return np.sum(squares, axis=0) / (self.count - 1)

    def without(self, group: int) -> "Runs":
        """All runs but those of one group."""
        runs = np.concatenate(self.f)
        keep = np.arange(len(runs)) % GROUPS != group
        return self._replace(f=[runs[keep]])


class Error(NamedTuple):
    """Squared bias, its standard error, and the variance of one run, at one size."""

    bias2: float
    stderr: float
    variance: float

    @property
    def cautious(self) -> float:
        """The squared bias that a choice of sizes reckons with: a standard error above."""
        return max(self.bias2, 0.0) + self.stderr

    @property
    def bias(self) -> float:
        return max(self.bias2, 0.0) ** 0.5


# --- measuring


def fastest(
    problem: Problem, n: int, budget: float
) -> tuple[Callable[[jax.Array], jax.Array], int, float]:
    """The ensemble of width n with the least time per network, its size, its compilation."""
    most = max(1, MEMORY // (4 * n * n * (problem.depth - 1)))
    best: tuple[float, Any, int, float] | None = None
    for how in ("map", "vmap"):
        function, before = problem.ensemble(n, how), best[0] if best else 0.0
        # One after the other, more networks only save calls.
        for chunk in (1, 16, 64) if how == "map" else (4, 16, 64, 256, 1024):
            if (how == "vmap" and chunk > most) or before * chunk > budget:
                break
            keys = jax.random.split(jax.random.key(chunk), chunk)
            call = lambda keys=keys, function=function: function(keys)
            timing = measure(call, 3 if n < SLOW else 1)
            each = timing.median / chunk
            if best is None or each < best[0]:
                best = each, function, chunk, timing.compilation
            # A small batch may be slow where a large one is not, but not by this much.
            if each > 3 * best[0]:
                break
            before = each
    assert best is not None
    return best[1:]


def dense_runs(problem: Problem, n: int, budget: float) -> Runs:
    """Networks of width n in the fastest batch, as many as the budget allows."""
    function, chunk, compilation = fastest(problem, n, budget)
    pieces, times, end = [], [], time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        key = jax.random.fold_in(jax.random.key(n), len(times))
        keys = jax.random.split(key, chunk)
        times.append(seconds(lambda keys=keys: pieces.append(np.asarray(function(keys)))))
    middle, low, high = (t / chunk for t in spread(times))
    pieces = [piece.astype(np.float64) for piece in pieces]
    return Runs(n, pieces, middle, (low, high), compilation, chunk)


def train_runs(problem: Problem, width: Any, size: int, budget: float, **how: Any) -> Runs:
    """Runs of `tplimit.train`, in calls of several replicates."""
    first = seconds(lambda: problem.train(width, 0, 1, **how))
    once = seconds(lambda: problem.train(width, 1, 1, **how))
    replicates = int(np.clip(budget / (5 * once), 1, 64))
    pieces, times = [], []
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        call = lambda: pieces.append(problem.train(width, 2 + len(times), replicates, **how))
        times.append(seconds(call))
    middle, low, high = (t / replicates for t in spread(times))
    return Runs(size, pieces, middle, (low, high), max(0.0, first - middle))


# --- bias and variance


class Law(NamedTuple):
    """Bias b / n (+ c / n^2) per step and point, from runs of all sizes n (width or samples)."""

    sizes: tuple[int, ...]  # those that fit the law
    terms: np.ndarray  # (1 or 2, T, P)
    covariance: np.ndarray  # of the terms, averaged over steps and points
    common: np.ndarray  # change of the terms if the reference moves by -1
    chi2: float

    def powers(self, n: float) -> np.ndarray:
        return np.array([n**-1.0, n**-2.0])[: len(self.terms)]

    def bias2(self, n: int) -> float:
        """Mean square of the bias at size n, less what the noise of the fit adds to it."""
        row = self.powers(n)
        return float(np.mean(np.tensordot(row, self.terms, 1) ** 2) - row @ self.covariance @ row)


def variances(runs: Sequence[Runs]) -> dict[int, float]:
    """Variance of a run, averaged over steps and points, at every size.

    With few runs it is v / n, with v from the largest size that has enough of them.
    """
    known = [r for r in runs if r.count >= ENOUGH] or list(runs)
    v = known[-1].size * known[-1].variance.mean()
    return {r.size: float(r.variance.mean() if r in known else v / r.size) for r in runs}


def fitted(runs: Sequence[Runs], known: np.ndarray, known_var: float, powers: Sequence[int]) -> Law:
    """Least squares of mean - known by these powers of 1 / n.

    The reference is the same at every size, so its error is common to all.
    """
    n = np.array([r.size for r in runs], float)
    design = np.stack([n**-k for k in powers], axis=1)
    variance = variances(runs)
    noise = np.diag([variance[r.size] / r.count for r in runs])
    inverse = np.linalg.inv(noise + known_var)
    covariance = np.linalg.inv(design.T @ inverse @ design)
    hat = covariance @ design.T @ inverse
    distance = np.stack([r.mean for r in runs]) - known
    terms = np.tensordot(hat, distance, 1)
    rest = (distance - np.tensordot(design, terms, 1)).reshape(len(n), -1)
    freedom = len(n) - len(powers)
    chi2 = np.mean(np.sum(rest * (inverse @ rest), axis=0)) / freedom if freedom else np.nan
    return Law(tuple(r.size for r in runs), terms, covariance, hat.sum(axis=1), float(chi2))


def bias_law(runs: Sequence[Runs], known: np.ndarray, known_var: float, terms: int) -> Law:
    """The law over as many sizes as it describes: the smallest are dropped until it does."""
    for start in range(len(runs) - terms):
        law = fitted(runs[start:], known, known_var, range(1, terms + 1))
        # Steps and points are correlated: their average chi2 is nearly as uncertain as that of one.
        if law.chi2 < 3:
            break
    return law


def jackknifed(estimate: Callable[[Sequence[Runs]], np.ndarray], runs: Sequence[Runs]) -> Any:
    """Standard error of an estimate from runs, leaving out an eighth of all at a time."""
    parts = np.array([estimate([r.without(g) for r in runs]) for g in range(GROUPS)])
    return np.sqrt((GROUPS - 1) * np.mean((parts - parts.mean(axis=0)) ** 2, axis=0))


def with_reference(bias2: float, stderr: float, reference_var: float) -> float:
    """Standard error of a squared bias with that of the reference, which no jackknife sees.

    The errors of the reference at different steps and points count as one: they move together.
    """
    cross = 4 * max(bias2, 0.0) * reference_var
    return float(np.sqrt(stderr**2 + 2 * reference_var**2 + cross))


def errors_of(
    law: Law, runs: Sequence[Runs], sizes: Sequence[int], known: np.ndarray, known_var: float
) -> dict[int, Error]:
    """Bias by the law, variance as measured or, at sizes that have no runs here, by v / n.

    At sizes too small for the law the distance of the mean counts as bias, noise included.
    """
    used = [r for r in runs if r.size in law.sizes]
    powers = range(1, len(law.terms) + 1)
    again = lambda some: fitted(some, known, known_var, powers)
    stderr = jackknifed(lambda some: np.array([again(some).bias2(n) for n in sizes]), used)
    variance = variances(runs)
    v = runs[-1].size * variance[runs[-1].size]
    outside = {r.size: rms(r.mean - known) ** 2 for r in runs if r not in used}
    out = {}
    for n, s in zip(sizes, stderr, strict=True):
        moved = known_var * (law.powers(n) @ law.common) ** 2
        bias2, error = law.bias2(n), with_reference(law.bias2(n), s, moved)
        if n in outside:
            bias2, error = outside[n], 0.0
        out[n] = Error(bias2, error, variance.get(n, v / n))
    return out


# --- choice


def cheapest(
    target: float, runs: Sequence[Runs], errors: dict[int, Error]
) -> tuple[Runs, int, float] | None:
    """The measured size and the number of runs that reach the target in the least time."""
    best = None
    for r in runs:
        error = errors[r.size]
        room = target**2 - error.cautious
        if room <= 0:
            continue
        count = max(1, int(np.ceil(error.variance / room)))
        if best is None or count * r.time < best[2]:
            best = r, count, count * r.time
    return best


def compare(problem: Problem, sizes: Sizes, folder: Path, report: Report) -> None:
    label = f"P={problem.points} T={problem.steps}"
    known, stderr = reference(problem, folder, *sizes.reference)
    known_var = float(np.mean(stderr**2))
    report.say(
        f"\n{label}: reference {sizes.reference[1]} runs of M = {sizes.reference[0]}, "
        f"its standard error {known_var**0.5:.2g} (RMS)"
    )
    report.save(**{f"reference {label}": {"stderr": known_var**0.5, "f": known}})

    dense = [dense_runs(problem, n, sizes.budget) for n in sizes.widths]
    deferred = [train_runs(problem, tp.Deferred(n), n, sizes.budget / 3) for n in sizes.deferred]
    limit = [train_runs(problem, tp.inf, m, sizes.budget, samples=m) for m in sizes.samples]

    law = bias_law(dense, known, known_var, 2)
    widths = sorted({*sizes.widths, *sizes.deferred})
    errors = errors_of(law, dense, widths, known, known_var)
    limit_law = bias_law(limit, known, known_var, 1)
    limits = errors_of(limit_law, limit, sizes.samples, known, known_var)
    for name, one in (("networks (n)", law), ("limit runs (M)", limit_law)):
        terms = " + ".join(f"{rms(t):.3g} / n^{k}" for k, t in enumerate(one.terms, start=1))
        report.say(
            f"bias of {name}: {terms} (RMS), error of the first {one.covariance[0, 0] ** 0.5:.2g},"
            f" from {one.sizes[0]} to {one.sizes[-1]}, chi2 per freedom {one.chi2:.2g}"
        )
    check_reference(dense, law, known, known_var, report)
    rows = [
        {
            "method": name,
            "n or M": r.size,
            "runs": r.count,
            "batch": r.chunk,
            "s/run": r.time,
            "fastest": r.spread[0],
            "slowest": r.spread[1],
            "compile s": r.compilation,
            "mean - ref.": rms(r.mean - known),
            "its noise": float(r.variance.mean() / r.count + known_var) ** 0.5,
            "bias": table[r.size].bias,
            "bias + s.e.": table[r.size].cautious ** 0.5,
            "std of a run": table[r.size].variance ** 0.5,
        }
        for name, runs, table in (
            ("dense", dense, errors),
            ("deferred", deferred, errors),
            ("limit", limit, limits),
        )
        for r in runs
    ]
    report.table(f"measured, {label}", rows)
    summary: list[dict[str, Any]] = []
    for target in TARGETS:
        found = {
            "dense": cheapest(target, dense, errors),
            "deferred": cheapest(target, deferred, errors),
            "limit": cheapest(target, limit, limits),
        }
        for name, best in found.items():
            both = best and found["limit"]
            summary.append(
                {
                    "RMS error": target,
                    "method": name,
                    "n or M": best[0].size if best else "none",
                    "K or R": best[1] if best else None,
                    "seconds": best[2] if best else None,
                    "measured": _share(best) if best else None,
                    "compile s": best[0].compilation if best else None,
                    "times the limit": best[2] / found["limit"][2] if both else None,
                }
            )
    report.table(f"time to an error, {label} (none: no measured size has so little bias)", summary)


def _share(best: tuple[Runs, int, float]) -> str:
    """Whether that many runs were made, or only their time is multiplied."""
    return "yes" if best[1] <= best[0].count else "extrapolated"


def check_reference(
    dense: Sequence[Runs], law: Law, known: np.ndarray, known_var: float, report: Report
) -> None:
    """The dense networks alone, extrapolated to 1/n = 0, against the reference."""
    used = [r for r in dense if r.size in law.sizes]
    if len(used) < 4:
        return
    free = fitted(used, known, 0.0, range(3))
    gap, expected = rms(free.terms[0]), (free.covariance[0, 0] + known_var) ** 0.5
    report.say(f"dense at 1/n = 0 less reference: {gap:.2g} (RMS), expected {expected:.2g}")
    report.save(extrapolation={"gap": gap, "expected": expected})


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--reference-samples", type=int, help="M of the reference")
    options.add_argument("--reference-runs", type=int, help="R of the reference")
    options.add_argument("--only", type=int, choices=(1, 2), help="only this problem")
    options.add_argument("--budget", type=float, help="seconds of measurement per width")
    options.add_argument("--widest", type=int, help="no dense networks beyond this width")
    options = options.parse_args()
    report = Report("dense", options)
    sizes = SMALL if options.small else FULL
    m, r = sizes.reference
    asked = options.reference_samples or m, options.reference_runs or r
    widest = options.widest or max(sizes.widths)
    sizes = sizes._replace(
        reference=asked,
        budget=options.budget or sizes.budget,
        widths=tuple(n for n in sizes.widths if n <= widest),
    )
    for number, problem in enumerate(sizes.problems, start=1):
        if options.only not in (None, number):
            continue
        compare(problem, sizes, options.out, report)


if __name__ == "__main__":
    main()
