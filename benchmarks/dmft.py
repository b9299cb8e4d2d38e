"""The fixed-point solver of dynamical mean field theory against the limit, 3 hidden layers.

The problem is the published deep one (tanh(0.8 h) / 0.8, D = 25, eta = 0.1, gamma = 1, centred,
full batch) on P = 4 points, for a growing number of steps T. Compared in one process:

- the alternating fixed-point solver, compiled (`_dmft_solver.py`), at its published settings: 1000
  samples, 20 iterations, damping 0.7; as published and with the exact rule for f (corrected);
- `tplimit.train(width=tplimit.inf)` at several M; its time is given at the cheapest measured M
  whose error is not above the solver's.

Errors are root mean squares over steps, points and runs of the predictions, and over steps and
runs of the loss, against one large limit run. The bias of the published Euler rule is measured
apart from the solver's noise: it is the limit of the same rule, trained by tplimit. Last comes the
published setting itself (T = 100, P = 10), which the solver does not reach here: its time is
extrapolated and marked.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _dmft_solver import MODES, Settings, Solver
from common import Problem, Report, parser, power_law, reference, rms, seconds, spread

import tplimit as tp


class Sizes(NamedTuple):
    steps: tuple[int, ...]  # T, at P = 4
    solver: Settings
    seeds: int  # runs of the solver
    samples: tuple[int, ...]  # M of the limit
    replicates: int  # runs of the limit per M
    reference: tuple[int, int]  # M, R
    deep: tuple[int, int, int]  # T, M, R of the published setting


FULL = Sizes(
    (5, 10, 20, 30),
    Settings(),
    3,
    tuple(2**k for k in range(8, 16)),
    8,
    (2**16, 8),
    (100, 2**14, 4),
)
SMALL = Sizes(
    (2, 4),
    Settings(samples=200, iterations=10),
    2,
    (2**8, 2**11),
    4,
    (2**13, 4),
    (6, 2**11, 4),
)
POINTS = 4


def published(points: int, steps: int, eta: float = 0.1) -> Problem:
    return Problem(3, points, steps, inputs=25, eta=eta, gamma=1.0, beta=0.8, centred=True)


class Euler:
    """Training by the published rule: errors follow the tangent kernel, f is never looked at.

    The limit of this is what the published solver converges to with many samples.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def start(self, theta: dict[str, Any]) -> dict[str, Any]:
        return {"theta": theta, "delta": self.problem.data[1]}

    def step(self, state: dict[str, Any], batch: tuple[Any, Any]) -> tuple[dict[str, Any], Any]:
        (x, y), theta, problem = batch, state["theta"], self.problem
        network = lambda theta: problem.network(theta, x)
        (gradient,) = jax.vjp(network, theta)[1](state["delta"] / problem.points)
        rate = problem.eta * problem.gamma**2 * theta["v"].shape[0]
        move = jax.tree.map(lambda d: rate * d, gradient)
        change = jax.jvp(network, (theta,), (move,))[1]
        moved = jax.tree.map(lambda p, d: p + d, theta, move)
        return {"theta": moved, "delta": state["delta"] - change}, y - state["delta"]


class Measured(NamedTuple):
    """Runs of one method: predictions (count, T, P), seconds of a run, compilation."""

    f: np.ndarray
    time: float
    spread: tuple[float, float]
    compilation: float

    def errors(self, problem: Problem, known: np.ndarray) -> tuple[float, float]:
        """Root mean squares of the error of a single run: predictions, loss."""
        losses = problem.losses(self.f) - problem.losses(known)
        return rms(self.f - known), rms(losses)


def solver_runs(problem: Problem, settings: Settings, mode: str, seeds: int) -> Measured:
    solver = Solver(problem, settings, mode)
    found, times = [], []
    for seed in range(seeds):
        call = lambda seed=seed: found.append(np.asarray(solver(seed), np.float64))
        times.append(seconds(call))
    middle, low, high = spread(times)
    return Measured(np.stack(found), middle, (low, high), solver.compilation)


def limit_runs(problem: Problem, samples: int, replicates: int) -> Measured:
    first = seconds(lambda: problem.train(tp.inf, 0, samples=samples))
    found, times = [], []
    for seed in range(1, replicates + 1):
        call = lambda seed=seed: found.append(problem.train(tp.inf, seed, samples=samples))
        times.append(seconds(call))
    middle, low, high = spread(times)
    return Measured(np.concatenate(found), middle, (low, high), max(0.0, first - middle))


def compare(
    sizes: Sizes, eta: float, folder: Path, report: Report
) -> dict[str, tuple[list[int], list[float]]]:
    """Both methods at every T; returns sizes T P and seconds of the solver, by mode."""
    detail: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    times: dict[str, tuple[list[int], list[float]]] = {mode: ([], []) for mode in MODES}
    for steps in sizes.steps:
        problem = published(POINTS, steps, eta)
        size = steps * POINTS
        known, stderr = reference(problem, folder, *sizes.reference)
        euler = Euler(problem)
        how = {"step": euler.step, "init": euler.start}
        ruled, _ = reference(problem, folder, *sizes.reference, name="-euler", **how)
        limits = {m: limit_runs(problem, m, sizes.replicates) for m in sizes.samples}
        solvers = {mode: solver_runs(problem, sizes.solver, mode, sizes.seeds) for mode in MODES}
        runs = {f"solver {mode}": r for mode, r in solvers.items()}
        runs |= {f"limit M = {m}": r for m, r in limits.items()}
        for name, r in runs.items():
            in_f, in_loss = r.errors(problem, known)
            detail.append(
                {
                    "T P": size,
                    "method": name,
                    "runs": len(r.f),
                    "s/run": r.time,
                    "fastest": r.spread[0],
                    "slowest": r.spread[1],
                    "compile s": r.compilation,
                    "error f": in_f,
                    "error loss": in_loss,
                }
            )
        for mode, r in solvers.items():
            times[mode][0].append(size)
            times[mode][1].append(r.time)
            in_f, in_loss = r.errors(problem, known)
            # Not above in both records; the solver may win, then there is no such M.
            equal = [
                (one.time, m)
                for m, one in limits.items()
                if all(np.array(one.errors(problem, known)) <= (in_f, in_loss))
            ]
            best, m = min(equal) if equal else (None, "none")
            summary.append(
                {
                    "T P": size,
                    "mode": mode,
                    "error f": in_f,
                    "error loss": in_loss,
                    "Euler bias": rms(ruled - known) if mode == "published" else None,
                    "mean - ref.": rms(r.f.mean(axis=0) - known),
                    "its noise": rms(r.f.std(axis=0, ddof=1)) / len(r.f) ** 0.5,
                    "ref. s.e.": rms(stderr),
                    "solver s": r.time,
                    "limit M": m,
                    "limit s": best,
                    "solver/limit": r.time / best if best else None,
                }
            )
    report.table("time and error of a run", detail)
    report.table(
        "equal error: the cheapest measured M with an error not above the solver's", summary
    )
    return times


def deep(sizes: Sizes, times: dict[str, tuple[list[int], list[float]]], report: Report) -> None:
    """The published setting by `tplimit.train`; the solver's time extrapolated to its size."""
    steps, samples, replicates = sizes.deep
    problem = published(10, steps)
    begin = time.perf_counter()
    f = problem.train(tp.inf, 0, replicates, samples=samples)
    total = time.perf_counter() - begin
    # A second time, with everything compiled.
    again = seconds(lambda: problem.train(tp.inf, 1, replicates, samples=samples))
    losses = problem.losses(f)
    stderr = losses.std(axis=0, ddof=1) / replicates**0.5
    row: dict[str, Any] = {
        "T P": 10 * steps,
        "M": samples,
        "R": replicates,
        "total s": total,
        "compiled s": again,
        "compile s": total - again,
        "max s.e. loss": float(stderr.max()),
        "s.e. f (RMS)": rms(f.std(axis=0, ddof=1) / replicates**0.5),
    }
    # The published figure shows the mean square, without the half: 0.66, 0.21, 0.03.
    marks = [t for t in (20, 40, 60) if t < steps]
    row |= {f"mean square t={t}": 2 * float(losses.mean(axis=0)[t]) for t in marks}
    report.table(f"published deep setting, T = {steps}, P = 10: limit, measured", [row])
    report.save(**{"deep losses": losses.mean(axis=0), "deep stderr": stderr})
    laws = []
    for mode, (x, y) in times.items():
        law = power_law(x, y)
        guess = law.factor * (10 * steps) ** law.power
        laws.append(
            {
                "mode": mode,
                "fitted on T P": f"{x[0]} ... {x[-1]}",
                "exponent": law.power,
                "+-": law.error,
                "seconds, EXTRAPOLATED": guess,
                "over the limit's total, EXTRAPOLATED": guess / total,
            }
        )
    report.table(f"solver at T P = {10 * steps}: power law, not measured", laws)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--eta", type=float, default=0.1, help="of the comparison, not the last")
    options = options.parse_args()
    report = Report("dmft", options)
    sizes = SMALL if options.small else FULL
    s = sizes.solver
    report.say(
        f"solver: {s.samples} samples, {s.iterations} iterations, damping {s.damping}; reference: "
        f"{sizes.reference[1]} limit runs of M = {sizes.reference[0]}"
    )
    times = compare(sizes, options.eta, options.out, report)
    deep(sizes, times, report)


if __name__ == "__main__":
    main()
