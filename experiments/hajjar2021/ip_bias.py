"""Unscaled biases: an initial output that forgets its input, and a network that hardly recalls it

Theorem A.12.1: with integrable weights and biases without a power of the width, h^l_0 (l ≥ 2) and
f_0 are in the limit the initial biases alone, whatever the input; the first updates of layers ≥ 3
and of the output do not depend on the input ξ_0 either. Later the input enters, but weakly.
Measured: the differences between inputs fall as n^-1/2; the limit, for a given output bias v, is
that of networks; and after training the spread of f_t over inputs is small against its change in
time.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.plotting import COLOURS, panels, power_lines
from tplimit.reproduce import Result, Row, at_most, power_law

from . import _setting

DEPTH, ETA, STEPS, OUTPUT_BIAS = 3, 1.0, 3, 0.4


def run(quick: bool) -> Result:
    p, model = _setting.named("ip_bias"), _setting.network(DEPTH, "tanh", bias=True)
    widths = {64: 4, 128: 4} if quick else {256: 48, 512: 32, 1024: 16, 2048: 8}
    samples, replicates, steps = (2**9, 2, 1) if quick else (2**12, 6, STEPS)
    theta = p.theta(model) | {f"b{model.layers}": tp.full((), OUTPUT_BIAS)}
    rows = []

    forgotten = {n: first_pass(p, model, n, seeds) for n, seeds in widths.items()}
    names = ["f_0(A) - f_0(B)", "update of W3", "update of b3", "update of W4", "update of W1"]
    sizes = {
        name: {n: rows_[:, i] for n, rows_ in forgotten.items()} for i, name in enumerate(names)
    }
    for name, by_width in sizes.items():
        exponent, error = power_law(by_width)
        known = 0 if name.endswith("W1") else -0.5
        claim = f"exponent of the dependence on the input: {name}"
        rows.append(Row(claim, known, exponent, error, tolerance=0.15))

    run_at = lambda n, count: _setting.functions(
        p, model, ETA, steps, n, count, samples=samples, theta=theta, seed=1
    )
    limit = run_at(tp.inf, replicates)
    rows.append(Row("f_0 for v = 0.4, n = ∞", OUTPUT_BIAS, limit[:, 0].mean(), None, 1e-3))
    finite = {n: run_at(n, seeds) for n, seeds in widths.items()}
    distances = {n: _setting.distance(f, limit.mean(axis=0)) for n, f in finite.items()}
    exponent, error = power_law(distances)
    rows.append(Row("exponent of the distance to the limit", -0.5, exponent, error, tolerance=0.15))
    spread = np.abs(limit[:, 1:, 0] - limit[:, 1:, 1]).max()
    moved = np.abs(np.diff(limit, axis=1)).mean()
    claim = "spread over inputs / change in one step, n = ∞"
    rows.append(Row(claim, at_most(0.05), float(spread / moved)))
    collapsed = "exactly" if spread < 1e-6 else "no"
    rows.append(Row("f_t is independent of its input at t ≥ 1", "no", collapsed))

    def draw(figure: Figure) -> None:
        left, middle, right = panels(figure, 3)
        power_lines(left, sizes, {k: 0.0 if k.endswith("W1") else -0.5 for k in sizes})
        left.set(ylabel="relative difference", title="first pass and step: two inputs")
        t = np.arange(steps + 1)
        n = max(finite)
        for i, colour in zip(range(2), COLOURS, strict=False):
            point = _setting.NAMES[i]
            middle.plot(
                t, limit.mean(axis=0)[:, i], "o-", color=colour, ms=4, label=f"{point}, n = ∞"
            )
            middle.plot(t, finite[n][:, :, i].T, color=colour, lw=0.7, alpha=0.5)
        middle.plot([], [], color="#888888", lw=0.7, label=f"networks, n = {n}")
        middle.set(xlabel="step t", ylabel="f_t", title="two inputs, v = 0.4", xticks=t)
        middle.legend(frameon=False, fontsize=8)
        power_lines(right, {"|f_t − limit|": distances}, {"|f_t − limit|": -0.5})
        right.set(ylabel="RMS over t and inputs", title="distance to the limit")

    return Result(
        rows,
        {"dependence on the input": sizes, "limit": limit, "distances": distances},
        {"L": DEPTH, "activation": "tanh", "η": ETA, "steps": steps, "widths and seeds": widths,
         "samples": samples, "replicates": replicates},
        draw,
    )  # fmt: skip


def first_pass(p: tp.Parameterization, model: tp.Model, n: int, seeds: int) -> np.ndarray:
    """Per seed: |f_0(A) - f_0(B)|, then relative differences of first updates for two samples.

    The derivative of the loss is -1 for both, so that what differs is the input alone.
    """
    predict, step = p.predict(model), p.step(model, _setting.linear, ETA)
    x, one = jnp.asarray(_setting.INPUTS[:2, None]), jnp.ones(1)

    @jax.jit
    def measure(theta: Any) -> jax.Array:
        f = predict(theta, jnp.asarray(_setting.POINTS))
        first, second = (step(theta, (x[t], one))[0] for t in (0, 1))
        norm = lambda a, b, name: jnp.linalg.norm(a[name] - b[name])
        relative = [
            norm(first, second, name) / norm(first, theta, name)
            for name in ("W3", "b3", f"W{model.layers}", "W1")
        ]
        return jnp.stack([jnp.abs(f[0] - f[1]), *relative])

    keys = jax.random.split(jax.random.key(n), seeds)
    return np.array([measure(tp.sample(p.theta(model), key, width=n)) for key in keys])
