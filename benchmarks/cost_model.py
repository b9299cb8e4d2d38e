"""Memory and time of long runs with many particles, on paper, from three measured numbers.

The stacks of revealed directions hold nearly all of the memory, and reading them takes nearly all
of the time. So the cost of a run follows from the number of directions after t steps, from how
often a step reads each stack (counted in `tplimit/gaussian/deferred.py`), and from the bandwidth of
the memory.

Measured here: the directions, at M = 2^12 and T = 200; the bandwidth of copying an array; the time
of steps on this machine, to compare the model with. All else is computed. The directions are
extrapolated as a power law, and bandwidth and memory of a GPU are assumptions (options).

`--write` puts the tables into `docs/scale-out.md`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scale-out.md"
START, END = "<!-- made by benchmarks/cost_model.py -->", "<!-- end -->"
POINTS, INPUTS, LAYERS = 10, 10, 3
TOLERANCE = 1e-5
FLOAT = 4  # bytes
SAMPLES = [2**k for k in range(16, 27, 2)]
LENGTHS = [100, 1_000, 10_000]

# --- the network: muP, tanh, squared error, full batch, gradient descent


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(POINTS, INPUTS)).astype(np.float32)
    return x, np.where(np.arange(POINTS) < POINTS // 2, -1.0, 1.0).astype(np.float32)


def declared() -> dict[str, Any]:
    n = tp.Width("n")
    hidden = {f"W{layer}": tp.normal((n, n)) for layer in range(1, LAYERS)}
    return {"U": tp.normal((INPUTS, n)), **hidden, "v": tp.normal((n,))}


def network(theta: dict[str, Any], x: Any) -> Any:
    n = theta["v"].shape[0]
    h = x @ theta["U"] / INPUTS**0.5
    for layer in range(1, LAYERS):
        h = jnp.tanh(h) @ theta[f"W{layer}"] / n**0.5
    return jnp.tanh(h) @ theta["v"] / n


def step(theta: dict[str, Any], batch: tuple[Any, Any]) -> tuple[dict[str, Any], Any]:
    x, y = batch
    loss = lambda theta: 0.5 * jnp.mean((network(theta, x) - y) ** 2)
    value, gradient = jax.value_and_grad(loss)(theta)
    rate = 0.5 * theta["v"].shape[0]
    return jax.tree.map(lambda w, g: w - rate * g, theta, gradient), value


# --- measured


class Run(NamedTuple):
    directions: np.ndarray  # after each step, of the matrix with the most
    capacity: np.ndarray  # rows that the stacks had room for
    seconds: np.ndarray  # of each step
    losses: np.ndarray


def train(samples: int, steps: int) -> Run:
    """One run; make it twice, the first compiles."""
    move, batch = tp.limit(step), data()
    how: dict[str, Any] = {"width": tp.inf, "samples": samples, "rank_tolerance": TOLERANCE}
    theta = tp.sample(declared(), jax.random.key(0), **how)
    rows = []
    for _ in range(steps):
        start = time.perf_counter()
        theta, loss = move(theta, batch)
        loss = float(loss)  # waits for the whole step
        seconds = time.perf_counter() - start
        stores = theta["v"]._revealed.bank.stores  # not part of the public interface
        rows.append((max(int(s.count) for s in stores), stores[0].capacity, seconds, loss))
    return Run(*map(np.array, zip(*rows, strict=True)))


def bandwidth(size: int = 2**26, repeats: int = 7) -> float:
    """Bytes per second of copying an array of float32 that fits no cache: read and written."""
    copy = jax.jit(lambda x: x + 1)
    x = jnp.zeros(size, jnp.float32)
    return 2 * FLOAT * size / min(timed(lambda: copy(x)) for _ in range(repeats))


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


# --- computed

MATRICES = LAYERS - 1
#: Row by row as `query` does it: X for the coefficients of x, for the residual, and both again for
#: the new basis; Y for the overlap of the fresh rows, and for all images together.
READS_OF_A_QUERY = 4 + 2
#: Moment matching, for every other stack of noise in the space of the output: overlap and product.
READS_OF_ANOTHER = 2
#: Each matrix is met forwards and backwards. Between two hidden matrices there is one space, which
#: both meet: each has the other's stack to be matched against.
READS_OF_A_STEP = 2 * MATRICES * READS_OF_A_QUERY + 2 * (MATRICES - 1) * READS_OF_ANOTHER


class Law(NamedTuple):
    """Directions of one matrix after t steps: `factor * t**power`, at most 2 P a step."""

    factor: float
    power: float

    def __call__(self, t: Any) -> Any:
        return np.minimum(self.factor * np.asarray(t, float) ** self.power, 2.0 * POINTS * t)


def fitted(directions: np.ndarray, first: int) -> Law:
    """Least squares of the logarithms, at times spread evenly on a logarithmic scale."""
    times = np.unique(np.round(np.geomspace(first, len(directions), 20)).astype(int))
    power, shift = np.polyfit(np.log(times), np.log(directions[times - 1]), 1)
    return Law(float(np.exp(shift)), float(power))


def capacity(directions: Any) -> Any:
    """Rows that the stacks have room for: 128, doubled until the next step fits."""
    needed = np.asarray(directions) + 2 * POINTS
    return 128 * 2 ** np.ceil(np.log2(np.maximum(needed / 128, 1)))


def divided(samples: int, rows: float) -> float:
    """Bytes of what has particles: two stacks of each matrix, initial vectors and their anchors."""
    return FLOAT * float(2 * MATRICES * rows + 2 * (INPUTS + 1)) * samples


def everywhere(rows: float) -> float:
    """Bytes that every device holds: overlaps and cores."""
    return FLOAT * float(2 * MATRICES * rows**2)


def read(samples: int, rows: Any) -> float:
    """Bytes read in steps whose stacks have these many rows."""
    return FLOAT * READS_OF_A_STEP * samples * float(np.sum(rows))


def devices(samples: int, rows: float, size: float) -> int:
    """The smallest power of two of devices that hold the run.

    When stacks grow, the old ones (half as many rows) are there as well.
    """
    count = 1
    while 1.5 * divided(samples, rows) / count + everywhere(rows) > size:
        count *= 2
    return count


# --- output


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def amount(size: float) -> str:
    for unit, factor in (("PB", 1e15), ("TB", 1e12)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e9:.3g} GB"


def page(options: argparse.Namespace, content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    found, speed = np.array(content["directions"]), content["bandwidth"]
    law = Law(*content["law"])
    steps = len(found)
    times = [t for t in (1, 2, 5, 10, 20, 50, 100, 150, 200) if t <= steps]
    check = content["check"]
    parts = [
        f"**Measured** ({content['cores']} cores, JAX {content['jax']}, shared with other jobs). "
        f"Copying an array: {speed / 1e9:.2g} GB/s. Directions of one hidden matrix (that with "
        f"most) after t steps, M = {content['samples']}; the loss goes from "
        f"{content['losses'][0]:.2g} to {content['losses'][-1]:.1g}:",
        table(["t", *map(str, times)], [["directions", *(str(found[t - 1]) for t in times)]]),
        f"**Model against measurement** on this machine, M = {check['samples']}, stacks with room "
        f"for {check['capacity']}: a step takes {1e3 * check['measured']:.3g} ms (median of "
        f"{check['steps']}); {READS_OF_A_STEP} reads of a stack at the measured bandwidth would "
        f"take {1e3 * check['model']:.3g} ms.",
        f"The directions hardly depend on M, which the rest takes for granted: "
        f"{check['directions']} after {check['after']} steps with M = {check['samples']}, "
        f"{found[check['after'] - 1]} with M = {content['samples']}.",
        f"**Fitted, and extrapolated beyond t = {steps}**: directions = {law.factor:.3g} "
        f"t^{law.power:.2f}, from t = {content['first']} on.",
        table(
            ["T", "directions, extrapolated", "room", "most possible, 2PT"],
            [
                [f"{t:,}", f"{float(law(t)):.0f}", f"{capacity(law(t)):.0f}", f"{2 * POINTS * t:,}"]
                for t in LENGTHS
            ],
        ),
        f"**On paper**: memory in all; devices of {options.gpu_memory / 1e9:.0f} GB; time of the "
        f"whole run on these at an assumed {options.gpu / 1e12:.3g} TB/s each; time on the machine "
        "above at its measured bandwidth, had it the memory.",
        table(
            ["M", "T", "memory", "devices", "time on them", "on this machine"],
            [
                [f"2^{samples.bit_length() - 1}", f"{t:,}", *costs(samples, t, law, speed, options)]
                for samples in SAMPLES
                for t in LENGTHS
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def costs(
    samples: int, steps: int, law: Law, speed: float, options: argparse.Namespace
) -> list[str]:
    rows = capacity(law(np.arange(1, steps + 1)))
    count = devices(samples, rows[-1], options.gpu_memory)
    total = read(samples, rows)
    return [
        amount(divided(samples, rows[-1]) + count * everywhere(rows[-1])),
        f"{count:,}",
        duration(total / (count * options.gpu)),
        duration(total / speed),
    ]


def measured(small: bool) -> dict[str, Any]:
    samples, steps, first = (2**9, 8, 2) if small else (2**12, 200, 20)
    long = train(samples, steps)
    at, count = (2**10, 4) if small else (2**14, 30)
    train(at, count)
    run, speed = train(at, count), bandwidth()
    last = run.capacity == run.capacity[-1]
    return {
        "cores": available(),
        "jax": jax.__version__,
        "bandwidth": speed,
        "samples": samples,
        "directions": long.directions.tolist(),
        "losses": long.losses.tolist(),
        "first": first,
        "law": list(fitted(long.directions, first)),
        "check": {
            "samples": at,
            "capacity": int(run.capacity[-1]),
            "steps": int(last.sum()),
            "after": count,
            "directions": int(run.directions[-1]),
            "measured": float(np.median(run.seconds[last])),
            "model": read(at, run.capacity[-1]) / speed,
        },
    }


def available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    options = argparse.ArgumentParser(
        description="Memory and time of long runs with many particles, on paper.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--small", action="store_true", help="a check of the script")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of result files")
    options.add_argument("--gpu", type=float, default=1.5e12, help="bytes per second of a device")
    options.add_argument("--gpu-memory", type=float, default=80e9, help="bytes of a device")
    options.add_argument("--again", action="store_true", help="from the numbers measured last time")
    options.add_argument("--write", action="store_true", help="put the tables into the page")
    given = options.parse_args()
    file = given.out / f"cost_model{'-small' if given.small else ''}.json"
    if given.again:
        content = json.loads(file.read_text())
    else:
        content = measured(given.small)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n")
    text = page(given, content)
    print(text)
    if given.write:
        head, _, rest = PAGE.read_text().partition(START)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{START}\n\n{text}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
