"""NNGP and NTK of deep networks at all pairs of points, against neural-tangents.

Both are compiled and called in turn, in one process; compilation and the first calls are left out.
Memory is the peak of a process of its own, above that of one with 8 points.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Report, parser, peak_memory

from tplimit import kernels

DEPTH, W_STD, B_STD, FEATURES, REPEATS = 5, 1.4, 0.1, 50, 9
THEIR_NAMES = {"relu": "Relu", "erf": "Erf"}


def ours(name: str) -> Callable[[jax.Array], Any]:
    network = kernels.mlp(DEPTH, name, W_STD, B_STD)

    def run(x: jax.Array) -> Any:
        found = network(x)
        return found.nngp, found.ntk

    return run


def theirs(name: str) -> Callable[[jax.Array], Any]:
    stax = kernels.import_neural_tangents().stax
    hidden = stax.Dense(1, W_STD, B_STD), getattr(stax, THEIR_NAMES[name])()
    kernel_fn = stax.serial(*hidden * DEPTH, stax.Dense(1, W_STD, B_STD))[2]
    return jax.jit(lambda x: tuple(kernel_fn(x, None, ("nngp", "ntk"))))


LIBRARIES = {"tplimit": ours, "neural-tangents": theirs}


def data(points: int) -> jax.Array:
    """In the default dtype."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(points, FEATURES)), float)


def times(runs: dict[str, Callable[[jax.Array], Any]], x: jax.Array) -> dict[str, Any]:
    """Wall and CPU seconds of every library, called in turn: (repeats, 2) each."""
    for run in runs.values():
        jax.block_until_ready(run(x))
    found: dict[str, list[tuple[float, float]]] = {library: [] for library in runs}
    for _ in range(REPEATS):
        for library, run in runs.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(x))
            found[library].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {library: np.array(measured) for library, measured in found.items()}


def memory(library: str, name: str, x64: bool, points: int) -> float:
    """Peak of a process that computes one kernel, in MB above that of 8 points."""
    peaks = []
    for size in (8, points):
        settings = json.dumps([library, name, x64, size])
        command = [sys.executable, str(Path(__file__)), "--child", settings]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]))
    return (peaks[1] - peaks[0]) / 1e6


def child(settings: str) -> None:
    library, name, x64, points = json.loads(settings)
    with jax.enable_x64(x64):
        jax.block_until_ready(LIBRARIES[library](name)(data(points)))
    print(peak_memory())


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("kernels", options)
    points = 200 if options.small else 2000
    rows = []
    for name in THEIR_NAMES:
        for x64 in (False, True):
            with jax.enable_x64(x64):
                x = data(points)
                runs = {library: make(name) for library, make in LIBRARIES.items()}
                measured = times(runs, x)
                one, two = (run(x) for run in runs.values())
                apart = ~np.eye(points, dtype=bool)
                difference = max(
                    float(np.max(np.abs(np.asarray(a) - b)[apart]) / np.max(np.abs(b)))
                    for a, b in zip(one, map(np.asarray, two), strict=True)
                )
            wall, cpu = (
                {library: float(np.median(m[:, k])) for library, m in measured.items()}
                for k in range(2)
            )
            held = {library: memory(library, name, x64, points) for library in LIBRARIES}
            mine, other = LIBRARIES
            rows.append(
                {
                    "activation": name,
                    "dtype": x.dtype.name,
                    "s": wall[mine],
                    "theirs": wall[other],
                    "times faster": wall[other] / wall[mine],
                    "CPU s": cpu[mine],
                    "their CPU": cpu[other],
                    "CPU ratio": cpu[other] / cpu[mine],
                    "MB": held[mine],
                    "their MB": held[other],
                    "difference": difference,
                }
            )
    report.table(f"{points} points, depth {DEPTH}, NNGP and NTK", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main()
