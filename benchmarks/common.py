"""What the benchmarks share: the network, the data, timing, tables and result files."""

import argparse
import functools
import hashlib
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import tplimit as tp

RESULTS = Path(__file__).parent / "results"


# --- the problem


@dataclass(frozen=True)
class Problem:
    """A network in muP (`depth` hidden layers), its data and its training, in plain JAX.

        h_1 = x U / sqrt(D),   h_{l+1} = phi(h_l) W_l / sqrt(n),   f = phi(h_depth) v / (n gamma)
        phi(h) = tanh(beta h) / beta,   loss = mean (f - y)^2 / 2

    All parameters start as N(0, 1) and move by eta gamma^2 n times the gradient. A `centred`
    network predicts f minus f at initialisation, which vanishes in the limit. Inputs are N(0, 1),
    labels are -1 in the first half and +1 in the second; the batch is the whole set.
    """

    depth: int
    points: int
    steps: int
    inputs: int = 10
    eta: float = 0.5
    gamma: float = 1.0
    beta: float = 1.0
    centred: bool = False

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (P, D) and labels (P,)."""
        return _data(self.points, self.inputs)

    @property
    def theta(self) -> dict[str, Any]:
        """The declared parameters."""
        n = tp.Width("n")
        hidden = {f"W{layer}": tp.normal((n, n)) for layer in range(1, self.depth)}
        return {"U": tp.normal((self.inputs, n)), **hidden, "v": tp.normal((n,))}

    def network(self, theta: dict[str, Any], x: Any) -> Any:
        """f (not centred)."""
        n = theta["v"].shape[0]
        phi = lambda h: jnp.tanh(self.beta * h) / self.beta
        h = x @ theta["U"] / self.inputs**0.5
        for layer in range(1, self.depth):
            h = phi(h) @ theta[f"W{layer}"] / n**0.5
        return phi(h) @ theta["v"] / (n * self.gamma)

    def start(self, theta: dict[str, Any]) -> dict[str, Any]:
        """The first state: the parameters, and f before training where that is subtracted."""
        if not self.centred:
            return {"theta": theta}
        return {"theta": theta, "f0": self.network(theta, self.data[0])}

    def step(self, state: dict[str, Any], batch: tuple[Any, Any]) -> tuple[dict[str, Any], Any]:
        """One step of gradient descent; beside the state, the predictions before it."""
        x, y = batch

        def loss(theta: dict[str, Any]) -> tuple[Any, Any]:
            f = self.network(theta, x) - state.get("f0", 0.0)
            return 0.5 * jnp.mean((f - y) ** 2), f

        gradient, f = jax.grad(loss, has_aux=True)(state["theta"])
        rate = self.eta * self.gamma**2 * state["theta"]["v"].shape[0]
        moved = jax.tree.map(lambda p, d: p - rate * d, state["theta"], gradient)
        return {**state, "theta": moved}, f

    @property
    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self.data] * self.steps

    def losses(self, f: np.ndarray) -> np.ndarray:
        """The loss at every step from predictions (..., T, P)."""
        return 0.5 * np.mean((f - self.data[1]) ** 2, axis=-1)

    def train(
        self,
        width: Any,
        seed: int,
        replicates: int = 1,
        *,
        step: Any = None,
        init: Any = None,
        **how: Any,
    ) -> np.ndarray:
        """Predictions (replicates, T, P) by `tplimit.train`, at f_0 ... f_{T-1}.

        What is compiled belongs to this object: use one `Problem` for all runs that are timed.
        """
        run = tp.train(
            step or self.step,
            self.theta,
            self.batches,
            width=width,
            key=jax.random.key(seed),
            replicates=replicates,
            init=init or self.start,
            progress=False,
            **how,
        )
        return np.asarray(run.replicates.outputs, np.float64)

    def dense(self, n: int) -> Callable[[jax.Array], jax.Array]:
        """A function from a key to predictions (T, P) of one dense network of width n.

        Sampling and all steps are one program.
        """
        batch = jax.tree.map(jnp.asarray, self.data)

        def run(key: jax.Array) -> jax.Array:
            state = self.start(tp.sample(self.theta, key, width=n))
            return jax.lax.scan(lambda s, _: self.step(s, batch), state, None, length=self.steps)[1]

        return run

    def ensemble(self, n: int, how: str) -> Callable[[jax.Array], jax.Array]:
        """A compiled function from keys (K,) to predictions (K, T, P) of dense networks.

        `how` is "vmap" (side by side) or "map" (one after the other, in one program). Narrow
        networks gain by the first; products of batches of matrices are slow on CPUs, so that wide
        ones gain by the second.
        """
        run = self.dense(n)
        if how == "vmap":
            return jax.jit(jax.vmap(run))
        return jax.jit(lambda keys: jax.lax.map(run, keys))


@functools.cache
def _data(points: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    # The published settings name this generator, whose numbers depend on the flag. While a program
    # is traced, the numbers would be part of it.
    with jax.threefry_partitionable(False), jax.ensure_compile_time_eval():
        x = np.asarray(jax.random.normal(jax.random.PRNGKey(0), (inputs, points)).T)
    return x, np.where(np.arange(points) < points // 2, -1.0, 1.0).astype(np.float32)


# --- numbers


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


class Line(NamedTuple):
    """`y = factor * x**power`, with the standard error of the power."""

    factor: float
    power: float
    error: float


def power_law(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares of log y on log x."""
    u, v = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    design = np.stack([np.ones_like(u), u], axis=1)
    solution, *_ = np.linalg.lstsq(design, v, rcond=None)
    error = np.nan
    if len(u) > 2:
        variance = np.sum((v - design @ solution) ** 2) / (len(u) - 2)
        error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1]))
    return Line(float(np.exp(solution[0])), float(solution[1]), error)


def cached(folder: Path, label: str, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
    """An expensive array, computed once per folder and settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    path = folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.load(path)


def reference(
    problem: Problem, folder: Path, samples: int, replicates: int, name: str = "", **how: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a large limit run (mean over the replicates) and their standard error.

    A `name` tells runs apart that train otherwise (`how`, see `Problem.train`).
    """
    settings = {**asdict(problem), "samples": samples, "replicates": replicates}

    def make() -> np.ndarray:
        return problem.train(tp.inf, 10**6, replicates, samples=samples, **how)

    runs = cached(folder, f"reference{name}", settings, make)
    return runs.mean(axis=0), runs.std(axis=0, ddof=1) / replicates**0.5


# --- time


class Timing(NamedTuple):
    """Seconds: compilation (first call minus a later one), median, fastest and slowest call."""

    compilation: float
    median: float
    low: float
    high: float


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(function: Callable[[], Any], repeats: int = 5) -> Timing:
    """Time a call that returns arrays, or waits for them itself."""
    first = seconds(function)
    later = [seconds(function) for _ in range(repeats)]
    return Timing(max(0.0, first - statistics.median(later)), *spread(later))


def peak_memory() -> int:
    """Peak bytes of this process. On Linux not `ru_maxrss`, which a process starts with its
    parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def spread(times: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(times), min(times), max(times)


# --- output


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    out = argparse.ArgumentParser(
        description=(description or "").strip().splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--small", action="store_true", help="small sizes, for a check of the script")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of result files")
    return out


class Report:
    """Tables on the screen and the same numbers in `<name>.json`."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.path = options.out / f"{name}{'-small' if options.small else ''}.json"
        self.console = Console(width=None if Console().is_terminal else 160)
        self.content: dict[str, Any] = {
            "benchmark": name,
            "options": {k: str(v) for k, v in vars(options).items()},
            "machine": {
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else
                os.cpu_count(),
                "jax": jax.__version__,
                "backend": jax.default_backend(),
            },
        }  # fmt: skip
        machine = self.content["machine"]
        self.say(f"{name}: {machine['cores']} cores, JAX {jax.__version__}, {machine['backend']}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def table(self, title: str, rows: Sequence[dict[str, Any]], key: str | None = None) -> None:
        """Print rows (dicts with the same keys) and keep them in the file under `key`."""
        self.content[key or title] = list(rows)
        self.say(f"\n{title}")
        table = Table()
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(_text(value) for value in row.values()))
        self.console.print(table)
        self.save()

    def save(self, **more: Any) -> None:
        """Written after every table, so that a run that is stopped leaves what it has."""
        self.content |= more
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1, default=_plain) + "\n")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
