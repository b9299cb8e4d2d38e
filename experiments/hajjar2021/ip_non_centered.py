"""Non-centered initial weights: the inner layers collapse to one number each

Theorem A.12.2: with initial weights of mean 1 in layers 2 .. L + 1 the inner preactivations h^l_t,
2 ≤ l ≤ L - 1, are constant over the units, at every step; layer L is so before training only, and
layer 1 never. Measured: the standard deviation of h^l_t over units, which falls as n^-1/2 where the
layer collapses and stays where it does not; f_0 → u E[x^L] ≠ 0; and the limit against networks.

Networks that are narrow bend the slopes of layers 3 and 4. From width 1024 on they are -0.503 ±
0.031 and -0.496 ± 0.030 before training, -0.504 ± 0.036 and 0.009 ± 0.044 after three steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import panels, power_lines
from tplimit.reproduction import Result, Row, at_least, exponent_row

from . import _setting

DEPTH, ETA, STEPS = 4, 0.2, 3


def run(quick: bool) -> Result:
    p, model = _setting.named("ip_non_centered"), _setting.network(DEPTH, "elu", bias=True)
    widths = {64: 4, 128: 4} if quick else {128: 48, 256: 32, 512: 24, 1024: 16, 2048: 8}
    samples, replicates, steps = (2**9, 2, 1) if quick else (2**13, 4, STEPS)
    rows = []

    wide = {} if quick else {4096: 8}
    spreads = {n: deviations(p, model, n, seeds) for n, seeds in (widths | wide).items()}
    sizes: list[dict[str, Any]] = []
    expected: list[dict[str, float]] = []
    for t in (0, STEPS):
        sizes.append({})
        expected.append({})
        for l in range(1, DEPTH + 1):
            name = f"layer {l}"
            sizes[-1][name] = {n: s[:, t, l - 1] for n, s in spreads.items()}
            inner = 2 <= l < DEPTH or (l == DEPTH and t == 0)
            expected[-1][name] = -0.5 if inner else 0.0
            claim = f"exponent of the deviation over units, {name}, t = {t}"
            rows.append(exponent_row(claim, expected[-1][name], sizes[-1][name], 0.2))

    limit = _setting.functions(p, model, ETA, steps, tp.inf, replicates, samples=samples)
    claim = "|f_0| at A and B, n = ∞ (other integrable networks: 0)"
    rows.append(Row(claim, at_least(0.1), _setting.smallest(limit[:, 0])))
    finite = {
        n: _setting.functions(p, model, ETA, steps, n, seeds, seed=n) for n, seeds in widths.items()
    }
    distances = {n: _setting.distance(f, limit.mean(axis=0)) for n, f in finite.items()}
    rows.append(exponent_row("exponent of the distance to the limit", -0.5, distances, 0.15))

    def draw(figure: Figure) -> None:
        axes = panels(figure, 3)
        for a, t, by_layer, slopes in zip(axes, (0, STEPS), sizes, expected, strict=False):
            power_lines(a, by_layer, slopes)
            a.set(ylabel="standard deviation of h over units", title=f"elu, L = 4, t = {t}")
        power_lines(axes[2], {"|f_t − limit|": distances}, {"|f_t − limit|": -0.5})
        axes[2].set(ylabel="RMS over t, A and B", title="distance to the limit")

    return Result(
        rows,
        {"deviations": spreads, "limit": limit, "distances": distances},
        {"L": DEPTH, "activation": "elu", "η": ETA, "steps": steps, "widths and seeds": widths,
         "deviations also": wide, "samples": samples, "replicates": replicates},
        draw,
    )  # fmt: skip


def deviations(p: tp.Parameterization, model: tp.Model, n: int, seeds: int) -> np.ndarray:
    """Standard deviations over units of h^l_t at A: (seeds, steps + 1, L)."""
    x = jnp.asarray(_setting.POINTS[:1])

    def observe(state: Any) -> jax.Array:
        h, _ = _setting.layers(p, model, state, x)
        return jnp.stack([jnp.std(v) for v in h[:-1]])

    run = tp.train(
        p.step(model, "mse", ETA), p.theta(model), _setting.batches(STEPS), width=n,
        key=jax.random.key(n), replicates=seeds, observe=observe,
    )  # fmt: skip
    return np.asarray(run.replicates.observations, float)
