"""Time per step and memory of the limit against M, P, L, T and the rank tolerance.

One quantity at a time is changed from a common setting, and a power law is fitted. The question
that matters for long runs is the last: the time of step t in one long run that converges, for
which all t - 1 earlier steps have to be remembered. Steps reveal fewer and fewer new directions, so
it should grow with an exponent below 1.

Every run is made twice; the second, with everything compiled, is timed. Memory is the size of the
arrays that the state refers to and, for M, also the peak of a process of its own.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import Problem, Report, parser, peak_memory, power_law

import tplimit as tp
from tplimit.transforms.effort import Calls
from tplimit.transforms.limits import consuming, to_limit
from tplimit.transforms.opaque import revealed_directions

MB = 2**20


class Setting(NamedTuple):
    samples: int = 2**12
    points: int = 8
    depth: int = 3
    steps: int = 20
    tolerance: float = 1e-5

    @property
    def problem(self) -> Problem:
        return Problem(self.depth, self.points, self.steps, eta=0.5)


AXES: dict[str, tuple[Any, ...]] = {
    "samples": tuple(2**k for k in range(10, 17, 2)),
    "points": (4, 8, 16, 32),
    "depth": (2, 3, 4, 6),
    "steps": (10, 20, 40, 80),
    "tolerance": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
}
SMALL: dict[str, tuple[Any, ...]] = {
    "samples": (2**9, 2**11),
    "points": (2, 4),
    "steps": (4, 8),
    "tolerance": (1e-3, 1e-5),
}


class Run(NamedTuple):
    times: np.ndarray  # of each step, seconds
    compilation: float
    directions: np.ndarray  # revealed after each step, all matrices and both sides
    bytes: int
    loss: float


def train(setting: Setting, repeats: int = 3) -> Run:
    """The same training several times; the first compiles.

    The loop of `tplimit.train`, which reuses the memory of the state, with a clock in it.
    """
    problem, batch = setting.problem, setting.problem.data

    def run(seed: int, count: bool = False) -> tuple[list[float], list[int], Any, Any]:
        key = jax.random.key(seed)
        how = {"samples": setting.samples, "rank_tolerance": setting.tolerance}
        state = problem.start(tp.sample(problem.theta, key, width=tp.inf, **how))
        step = consuming(problem.step, Calls(setting.steps))
        times, found, f = [], [], None
        for _ in range(setting.steps):
            begin = time.perf_counter()
            state, f = step(state, batch)
            f = np.asarray(to_limit(f))  # waits for the whole step, which is one program
            times.append(time.perf_counter() - begin)
            if count:
                found.append(sum(revealed_directions(state)))
        return times, found, state, f

    first = run(0)[0]
    runs = [run(seed)[0] for seed in range(1, repeats + 1)]
    _, found, state, f = run(1, count=True)
    times = np.median(runs, axis=0)
    compilation = max(0.0, sum(first) - float(times.sum()))
    return Run(times, compilation, np.array(found), size(state), float(problem.losses(f)))


def size(state: Any) -> int:
    """Bytes of what it remembers of its matrices; keys are not worth counting."""
    # Not part of the public interface.
    leaves = jax.tree.leaves(state["theta"]["v"]._revealed.bank)
    return sum(x.nbytes for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def peak(setting: Setting) -> float:
    """Peak bytes of a process that makes one such run."""
    command = [sys.executable, __file__, "--probe", json.dumps(setting)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def probe(setting: Setting) -> None:
    train(setting, repeats=1)
    print(peak_memory())


def sweep(
    axis: str, values: tuple[Any, ...], base: Setting, report: Report
) -> list[dict[str, Any]]:
    """One table; returns the fitted exponents."""
    rows = []
    for value in values:
        setting = base._replace(**{axis: value})
        run = train(setting)
        rows.append(
            {
                axis: value,
                "ms/step": 1e3 * float(run.times.mean()),
                "ms last step": 1e3 * float(run.times[-1]),
                "compile s": run.compilation,
                "directions": int(run.directions[-1]),
                "state MB": run.bytes / MB,
                "peak MB": peak(setting) / MB if axis == "samples" else None,
                "loss": run.loss,
            }
        )
    report.table(f"against {axis}", rows)
    fits = []
    for quantity in ("ms/step", "directions", "state MB"):
        law = power_law([r[axis] for r in rows], [r[quantity] for r in rows])
        fits.append({"of": quantity, "in": axis, "exponent": law.power, "+-": law.error})
    return fits


def long_run(setting: Setting, report: Report) -> dict[str, Any]:
    """Time of step t against t, in windows of growing length."""
    run = train(setting)
    edges = np.unique(np.round(np.geomspace(1, setting.steps + 1, 13)).astype(int))
    rows = []
    for low, high in itertools.pairwise(edges.tolist()):
        part = run.times[low - 1 : high - 1]
        rows.append(
            {
                "steps": f"{low} ... {high - 1}",
                "t": float(np.sqrt(low * (high - 1))),
                "ms/step": 1e3 * float(np.median(part)),
                "directions": int(run.directions[high - 2]),
            }
        )
    label = f"step t of {setting.steps}, P = {setting.points}, M = {setting.samples}"
    report.table(f"{label}, last loss {run.loss:.2g}", rows, key="long run")
    late = [r for r in rows if r["t"] >= setting.steps / 20]
    law = power_law([r["t"] for r in late], [r["ms/step"] for r in late])
    return {"of": "ms of step t", "in": "t", "exponent": law.power, "+-": law.error}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--probe", help="only make one run, with this setting")
    options = options.parse_args()
    if options.probe:
        probe(Setting(*json.loads(options.probe)))
        return
    report = Report("scaling", options)
    base = Setting(2**10, 4, 2, 5) if options.small else Setting()
    long = base._replace(steps=30) if options.small else base._replace(steps=300)
    report.say(f"common setting: {base._asdict()}; {dataclasses.asdict(base.problem)}")
    fits = []
    for axis, values in (SMALL if options.small else AXES).items():
        fits += sweep(axis, values, base, report)
    fits.append(long_run(long, report))
    report.table("fitted exponents", fits)


if __name__ == "__main__":
    main()
