"""Adam in the limit beside the cheapest ensemble of dense networks: seconds to a given error.

A network of 2 hidden layers (tanh, muP, half the mean square over a few points of 3 inputs) takes
12 steps of Adam in natural units. Observed are its outputs at other points after every step, which
move by order one. How long does it take to know those of the limit to an RMS error over steps and
points of 1e-3 and 3e-4? The mean of k runs misses by

    RMS^2(k) = bias^2 + variance / k.

- dense: networks of width n in one compiled program, a scan over the steps, side by side or one
  after the other, whatever is faster. Means over all widths are fitted by f + c / n + d / n^2; the
  bias is that of the fit.
- limit: replicates of `tplimit.train(width=tplimit.inf, samples=M, pair_samples=K)`. The bias is
  that of a fit f + b / M for each ratio M / K, with the same f. Times are those of a whole call,
  with tracing and sampling, over its replicates. Programs are optimised whatever the number of
  replicates; `train` does so by itself for many of them.

Both take turns in one process; a time is the least of two, without compilation. On a busy machine
look at the times of the processor ("CPU"). A reference of many replicates of the limit, with keys
of its own, is compared with f.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import Report, parser, rms

import tplimit as tp
from tplimit.transforms import effort

RATE = 0.1
#: Width from which networks side by side are slower, and take much memory.
WIDE = 1024
#: Networks from which a variance is taken.
ENOUGH = 200


class Sizes(NamedTuple):
    steps: int
    targets: tuple[float, ...]
    fitted: dict[int, int]  # networks in each round, by width, of the fit
    dense: dict[int, int]  # .. of the choice
    limit: dict[tuple[int, int | None], int]  # replicates of each call, by (M, K)
    reference: tuple[int, int | None, int]  # M, K, replicates
    rounds: int


FULL = Sizes(
    steps=12,
    targets=(1e-3, 3e-4),
    fitted={16: 16384, 32: 8192, 64: 8192},
    dense={128: 4096, 256: 1024, 512: 256, 1024: 32, 2048: 8, 3072: 4, 4096: 2},
    limit={
        (256, None): 128,
        (512, None): 48,
        (1024, None): 24,
        (2048, None): 6,
        (512, 64): 128,
        (2048, 256): 24,
        (512, 32): 192,
        (1024, 64): 96,
        (2048, 128): 24,
        (4096, 256): 12,
    },
    reference=(2048, None, 24),
    rounds=1,
)
SMALL = Sizes(
    steps=3,
    targets=(1e-2,),
    fitted={16: 256, 32: 256},
    dense={64: 256, 128: 64},
    limit={(128, 32): 4},
    reference=(128, 32, 4),
    rounds=1,
)


# --- the program


class Program:
    """The network, its data and its training, in plain JAX."""

    def __init__(self, steps: int, points: int, observed: int) -> None:
        p, model = tp.parameterizations.mup, tp.mlp(2, inputs=3)
        x, seen = (
            jax.random.normal(jax.random.key(seed), (count, 3))
            for seed, count in ((0, points), (5, observed))
        )
        self.steps, self.batch = steps, (x, jnp.sin(2 * x[:, 0]))
        self.theta, predict = p.theta(model), p.predict(model)
        self.step = p.step(model, "mse", RATE, optimizer=optax.adam(1.0))
        self.observe = lambda state: predict(state, seen)

    def limit(self, samples: int, few: int | None, replicates: int, key: jax.Array) -> np.ndarray:
        """Outputs (replicates, steps, observed) by `tplimit.train`."""
        run = tp.train(
            self.step,
            self.theta,
            [self.batch] * self.steps,
            width=tp.inf,
            samples=samples,
            pair_samples=few,
            replicates=replicates,
            key=key,
            observe=self.observe,
            progress=False,
        )
        return np.asarray(run.replicates.observations, np.float64)[:, 1:]

    def dense(self, n: int, how: str) -> Callable[[jax.Array], jax.Array]:
        """A compiled function from keys to outputs (keys, steps, observed) at width n."""

        def move(state: Any, _: Any) -> tuple[Any, jax.Array]:
            state = self.step(state, self.batch)[0]
            return state, self.observe(state)

        def network(key: jax.Array) -> jax.Array:
            # The first step adds the memory of the optimizer to the state.
            state, first = move(tp.sample(self.theta, key, width=n), None)
            later = jax.lax.scan(move, state, None, length=self.steps - 1)[1]
            return jnp.concatenate([first[None], later])

        if how == "vmap":
            return jax.jit(jax.vmap(network))
        return jax.jit(lambda keys: jax.lax.map(network, keys))


# --- measuring


@dataclass
class Runs:
    """Runs of one setting: what they gave, and what they took."""

    method: str
    size: int
    few: int | None
    call: Callable[[jax.Array], Any]  # from a key to outputs (runs, steps, observed)
    compilation: float = 0.0
    f: list[np.ndarray] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)  # of a run
    cpu: list[float] = field(default_factory=list)

    def again(self, key: jax.Array) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        f = np.asarray(self.call(key), np.float64)
        self.wall.append((time.perf_counter() - wall) / len(f))
        self.cpu.append((time.process_time() - cpu) / len(f))
        self.f.append(f)

    def compiled(self) -> "Runs":
        """What the first call took more than another one."""
        self.again(jax.random.key(0))
        first, count = self.wall.pop(), len(self.f[0])
        self.again(jax.random.key(1))
        self.compilation = max(0.0, first - self.wall[0]) * count
        self.cpu.pop(0)
        return self

    @property
    def mean(self) -> np.ndarray:
        return np.concatenate(self.f).mean(axis=0)

    @property
    def count(self) -> int:
        return sum(map(len, self.f))

    @property
    def variance(self) -> float:
        return float(np.concatenate(self.f).var(axis=0, ddof=1).mean())


def dense_runs(program: Program, n: int, count: int) -> Runs:
    """The faster of networks side by side, 32 at a time, and one after the other."""
    found = []
    for how in ("map", "vmap") if n < WIDE else ("map",):
        function, chunk = program.dense(n, how), count if how == "map" else min(count, 32)

        def call(key: jax.Array, function: Any = function, chunk: int = chunk) -> np.ndarray:
            keys = jax.random.split(key, count).reshape(-1, chunk)
            return np.concatenate([np.asarray(function(part)) for part in keys])

        found.append(Runs("dense", n, None, call).compiled())
    return min(found, key=lambda runs: runs.wall[0])


def limit_runs(program: Program, size: int, few: int | None, replicates: int) -> Runs:
    call = lambda key: program.limit(size, few, replicates, key)
    return Runs("limit", size, few, call).compiled()


def by_turns(runs: Sequence[Runs], rounds: int) -> None:
    """Every setting once in each round, with keys of its own."""
    for number, (turn, one) in enumerate(itertools.product(range(rounds), runs)):
        one.again(jax.random.fold_in(jax.random.key(2 + turn), number))


# --- bias and choice


def variances(runs: Sequence[Runs]) -> list[float]:
    """Variances of a run, v / n with a v of all where there are too few runs to tell."""
    known = [one for one in runs if one.count >= ENOUGH] or runs
    v = np.average([one.size * one.variance for one in known[-3:]])
    return [one.variance if one in known else float(v / one.size) for one in runs]


class Law(NamedTuple):
    """f + c / n + d / n^2, per step and point, with the mean covariance of f, c and d."""

    terms: np.ndarray
    covariance: np.ndarray

    @property
    def error2(self) -> float:
        return float(self.covariance[0, 0])

    def noise2(self, n: int) -> float:
        row = np.array([0.0, 1 / n, 1 / n**2])
        return float(row @ self.covariance @ row)

    def bias2(self, n: int) -> float:
        bias = self.terms[1] / n + self.terms[2] / n**2
        return max(0.0, rms(bias) ** 2 - self.noise2(n))


def fitted(runs: Sequence[Runs]) -> Law:
    """Least squares of the means over all widths."""
    n = np.array([one.size for one in runs], float)
    design = np.stack([n**-k for k in range(3)], axis=1)
    weight = np.array([one.count / one.variance for one in runs])
    covariance = np.linalg.inv(design.T @ (weight[:, None] * design))
    means = np.stack([one.mean for one in runs])
    return Law(np.tensordot(covariance @ design.T * weight, means, 1), covariance)


def limit_biases(runs: Sequence[Runs], law: Law) -> list[tuple[float, float]]:
    """Squared biases of runs of one M / K and their noise, by a fit f + b / M with the f of dense
    networks."""
    m = np.array([one.size for one in runs], float)
    weight = np.array([one.count / one.variance for one in runs]) / m
    weight /= np.sum(weight / m)
    b = np.tensordot(weight, np.stack([one.mean for one in runs]) - law.terms[0], 1)
    own = sum(w**2 * one.variance / one.count for w, one in zip(weight, runs, strict=True))
    noise2 = own + weight.sum() ** 2 * law.error2
    bias2 = max(0.0, rms(b) ** 2 - noise2)
    return [(bias2 / size**2, noise2 / size**2) for size in m]


def biases(dense: Sequence[Runs], limit: Sequence[Runs], law: Law) -> list[tuple[float, float]]:
    """The squared bias of each, and what is noise in it and has been subtracted."""
    share = [one.few and one.size // one.few for one in limit]
    found: dict[int, tuple[float, float]] = {}
    for this in set(share):
        kin = [i for i, other in enumerate(share) if other == this]
        found |= dict(zip(kin, limit_biases([limit[i] for i in kin], law), strict=True))
    of_dense = [(law.bias2(one.size), law.noise2(one.size)) for one in dense]
    return of_dense + [found[i] for i in range(len(limit))]


def needed(target: float, bias2: float, variance: float) -> int | None:
    """The number of runs whose mean misses by no more than the target; None if its bias does."""
    room = target**2 - bias2
    return None if room <= 0 else max(1, int(np.ceil(variance / room)))


def row(
    one: Runs, variance: float, bias2: float, noise2: float, targets: Sequence[float]
) -> dict[str, Any]:
    """A line of the table, with the seconds to each target."""
    out = {
        "method": one.method,
        "n or M": one.size,
        "K": one.few,
        "runs": one.count,
        "variance": variance,
        "bias": bias2**0.5,
        "its noise": noise2**0.5,
        "compile s": one.compilation,
        "s/run": min(one.wall),
        "CPU s/run": min(one.cpu),
    }
    for target in targets:
        count = needed(target, bias2, variance)
        out[f"runs to {target:g}"] = count
        out[f"s to {target:g}"] = None if count is None else count * min(one.wall)
        out[f"CPU s to {target:g}"] = None if count is None else count * min(one.cpu)
    return out


def ratios(rows: Sequence[dict[str, Any]], targets: Sequence[float]) -> list[dict[str, Any]]:
    """The cheapest of both methods, and the time of the one over that of the other."""
    out = []
    for target, unit in itertools.product(targets, ("s", "CPU s")):
        column, best = f"{unit} to {target:g}", {}
        for method in ("dense", "limit"):
            able = [r for r in rows if r["method"] == method and r[column] is not None]
            best[method] = min(able, key=lambda r: r[column], default=None)
        dense, limit = best["dense"], best["limit"]
        out.append(
            {
                "RMS error": target,
                "unit": unit,
                "dense n": dense and dense["n or M"],
                "dense": dense and dense[column],
                "limit M": limit and limit["n or M"],
                "limit K": limit and limit["K"],
                "limit": limit and limit[column],
                "dense / limit": dense[column] / limit[column] if dense and limit else None,
            }
        )
    return out


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--points", type=int, default=4, help="training points")
    options.add_argument("--observed", type=int, default=2, help="points of which outputs count")
    given = options.parse_args()
    report = Report("optimizers", given)
    sizes = SMALL if given.small else FULL
    program = Program(sizes.steps, given.points, given.observed)
    if not given.small:
        effort._PAYS = 0
    dense = [dense_runs(program, n, k) for n, k in (sizes.fitted | sizes.dense).items()]
    limit = [limit_runs(program, *how, count) for how, count in sizes.limit.items()]
    by_turns([one for one in dense + limit if one.size not in sizes.fitted], sizes.rounds)

    law = fitted(dense)
    known = program.limit(*sizes.reference, jax.random.key(10**6))
    error2 = float(known.var(axis=0, ddof=1).mean()) / len(known)
    report.say(
        f"\noutputs after the last step {law.terms[0][-1].round(4)}; reference ({sizes.reference}, "
        f"standard error {error2**0.5:.2g}) less f of the dense networks: "
        f"{rms(known.mean(axis=0) - law.terms[0]):.2g}, expected {(error2 + law.error2) ** 0.5:.2g}"
    )
    spread = variances(dense) + [one.variance for one in limit]
    lines = zip(dense + limit, spread, biases(dense, limit, law), strict=True)
    rows = [row(one, variance, *bias2, sizes.targets) for one, variance, bias2 in lines]
    report.table("Adam: seconds to an RMS error (-: the bias is larger)", rows, "runs")
    report.table("cheapest", ratios(rows, sizes.targets), "ratios")


if __name__ == "__main__":
    main()
