"""Precision of the limit: kinds of noise, and the rank tolerance.

- kinds: standard deviation of a prediction times sqrt(M), for Sobol' and for pseudo-random rows
  (both moment-matched), root mean square over steps and points;
- tolerance: directions revealed, and how far the predictions move from those at round-off
  tolerance. Runs of one key share their noise as long as they reveal the same directions. The
  systematic shift is the mean over the runs, with the noise of that mean subtracted.
"""

import jax
import numpy as np
from common import Problem, Report, parser, rms

import tplimit as tp
from tplimit.gaussian.kinds import KINDS

PROBLEM = Problem(3, 4, 12)
TOLERANCES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4)


def kinds(samples: list[int], runs: int, report: Report) -> None:
    rows = []
    for size in samples:
        row: dict[str, object] = {"M": size, "runs": runs}
        for kind in KINDS:
            f = PROBLEM.train(tp.inf, 0, runs, samples=size, noise=kind)
            row[kind] = rms(f.std(axis=0, ddof=1)) * size**0.5
        rows.append(row)
    report.table("standard deviation of f times sqrt(M)", rows)


def tolerances(samples: int, runs: int, report: Report) -> None:
    rows, exact = [], None
    for tolerance in TOLERANCES:
        run = tp.train(
            PROBLEM.step,
            PROBLEM.theta,
            PROBLEM.batches,
            width=tp.inf,
            key=jax.random.key(1),
            samples=samples,
            replicates=runs,
            init=PROBLEM.start,
            rank_tolerance=tolerance,
            progress=False,
        )
        f = run.replicates.outputs.astype(float)
        exact = f if exact is None else exact
        moved = f - exact
        noise = moved.std(axis=0, ddof=1) ** 2 / runs
        rows.append(
            {
                "tolerance": tolerance,
                "directions": str(list(run.directions)),
                "standard error of f": rms(run.stderr.outputs),
                "systematic shift": float(
                    np.sqrt(max(0.0, np.mean(moved.mean(axis=0) ** 2 - noise)))
                ),
                "shift of one run": rms(moved),
            }
        )
    report.table(f"rank tolerance, M = {samples}, {runs} runs", rows)


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("noise", options)
    if options.small:
        kinds([256], 8, report)
        tolerances(256, 4, report)
    else:
        kinds([2**11, 2**14], 32, report)
        tolerances(2**14, 8, report)


if __name__ == "__main__":
    main()
