"""The wait before the first answer: CPU time of a first run, and what is compiled in it.

Every case runs in processes of its own. "floor" is the same case, data and sampling included, for
an ordinary network of width 1024 under `jax.jit`: what any JAX program has to wait. "cold" is the
first run at infinite width, "second" that of other closures with the same text, "other" that of
closures with another learning rate; "cached" is a first run in another process that finds a cache
on the disk. All of these are CPU seconds without the imports; figures with "/ F" are ratios to the
floor. "programs" are those compiled in the cold run that took longer than 0.2 s. "ms a step" is the
time of a step of a long run, of 300 steps, whose programs are there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
from _compile_cases import CASES, Case
from common import Report, parser

import tplimit as tp

FLOOR = 1024
_LARGE = 0.2  # seconds that a large program takes to compile
LONG = 300  # steps of the longer run


def finite(case: Case) -> None:
    """The case for a network of width `FLOOR`."""
    theta, seen = tp.sample(case.theta, jax.random.key(0), width=FLOOR), []
    step, observe = jax.jit(case.step), jax.jit(case.observe)
    for _ in range(max(1, case.steps)):
        if case.steps:
            seen.append(observe(theta))
        theta, value = step(theta, case.batch)
        seen.append(value)
    if case.steps:
        seen.append(observe(theta))
    jax.device_get(seen)


def infinite(case: Case, samples: int, steps: int) -> None:
    """The case at infinite width."""
    key = jax.random.key(0)
    if not case.steps:
        theta = tp.sample(case.theta, key, width=tp.inf, samples=samples)
        jax.device_get(tp.limit(case.step)(theta, case.batch)[1])
        return
    tp.train(
        case.step, case.theta, [case.batch] * steps, width=tp.inf, key=key, samples=samples,
        replicates=case.replicates, observe=case.observe, progress=False,
    )  # fmt: skip


class Clock:
    """CPU time of all threads, and programs compiled, since it was last asked."""

    def __init__(self) -> None:
        self.compiled: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self.heard)
        self.start = time.process_time()

    def heard(self, event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled.append(duration)

    def lap(self) -> tuple[float, int, int]:
        """CPU seconds, large programs, small ones."""
        now, compiled = time.process_time(), self.compiled
        spent, self.start, self.compiled = now - self.start, now, []
        large = sum(seconds > _LARGE for seconds in compiled)
        return spent, large, len(compiled) - large


def probe(name: str, what: str, samples: int) -> dict[str, Any]:
    """The figures of one case in this process; `what` is "floor", "limit" or "steps"."""
    make, clock = CASES[name], Clock()
    if what == "floor":
        finite(make(1.0))
        return {"floor": clock.lap()[0]}
    case = make(1.0)
    infinite(case, samples, case.steps)
    cold, large, small = clock.lap()
    if what == "cached":
        return {"cached": cold}
    infinite(make(1.0), samples, case.steps)
    second, again, _ = clock.lap()
    infinite(make(0.9), samples, case.steps)
    other = clock.lap()[0]
    found = {"cold": cold, "programs": large, "small": small}
    found |= {"second": second, "again": again, "other": other}
    if what == "steps":
        found["ms a step"] = step_time(make(1.0), samples)
    return found


def step_time(case: Case, samples: int) -> float | None:
    """Milliseconds of a step of a long run; what is compiled for it is there."""
    if not case.steps:
        return None
    infinite(case, samples, LONG)
    start = time.perf_counter()
    infinite(case, samples, LONG)
    return 1000 * (time.perf_counter() - start) / LONG / case.replicates


def measured(name: str, what: str, samples: int, folder: str = "") -> dict[str, Any]:
    """The figures of a case in a process of its own, with a cache in a folder if there is one."""
    command = [sys.executable, __file__, "--probe", what, "--samples", str(samples), name]
    environment = {**os.environ, "TPLIMIT_CACHE": folder}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} ({what}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, samples: int, steps: bool) -> dict[str, Any]:
    found = measured(name, "floor", samples) | measured(
        name, "steps" if steps else "limit", samples
    )
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            found |= measured(name, "cached", samples, folder)
    floor = found["floor"]
    return {
        "case": name,
        "floor s": floor,
        "cold s": found["cold"],
        "cold / F": found["cold"] / floor,
        "second s": found["second"],
        "second / F": found["second"] / floor,
        "other / F": found["other"] / floor,
        "cached / F": found["cached"] / floor,
        "programs": found["programs"],
        "small ones": found["small"],
        "compiled again": found["again"],
        "ms a step": found.get("ms a step"),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("case", nargs="*", help="names of cases; all that can be run by default")
    options.add_argument("--samples", type=int, default=4096, help="particles")
    options.add_argument("--steps", action="store_true", help="time the steps as well: minutes")
    options.add_argument("--probe", help="only measure one case in this process")
    options = options.parse_args()
    names = options.case or (["README limit"] if options.small else list(CASES))
    if options.probe:
        print(json.dumps(probe(names[0], options.probe, options.samples)))
        return
    report = Report("compile", options)
    rows = []
    for name in names:
        try:
            rows.append(row(name, options.samples, options.steps))
            report.say(str(rows[-1]))
        except RuntimeError as error:
            report.say(str(error))  # a package is missing, for instance
    report.table(f"waiting for the first answer, {options.samples} particles", rows)


if __name__ == "__main__":
    main()
