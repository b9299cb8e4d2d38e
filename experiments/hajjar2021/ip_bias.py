"""Unscaled biases: an initial output that forgets its input, and a network that hardly recalls it

Theorem A.12.1: with integrable weights and biases without a power of the width, h^l_0 (l ≥ 2) and
f_0 are in the limit the initial biases alone, whatever the input; the first updates of layers ≥ 3
and of the output do not depend on the input ξ_0 either. Later the input enters, but weakly.
Every integrable layer divides what depends on the input by √n: by counting, the difference of x^l
between two inputs is n^-(l-1)/2, that of f_0 is n^-L/2, and first updates differ as the x^(l-1) or
h^l that they are made of. Measured: these exponents; the limit, for a given output bias v, against
networks; and the spread of f_t over inputs, which is small against its change in time.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels, power_lines
from tplimit.reproduction import Result, Row, at_most, average, exponent_row

from . import _setting

DEPTH, ETA, STEPS, OUTPUT_BIAS = 3, 1.0, 3, 0.4


def run(quick: bool) -> Result:
    p, model = _setting.named("ip_bias"), _setting.network(DEPTH, "tanh", bias=True)
    widths = {64: 4, 128: 4} if quick else {256: 48, 512: 32, 1024: 16, 2048: 8}
    samples, replicates, steps = (2**9, 2, 1) if quick else (2**12, 6, STEPS)
    theta = p.theta(model) | {f"b{model.layers}": tp.full((), OUTPUT_BIAS)}
    rows = []

    # More networks: this is one pass of each.
    count = 1 if quick else 6
    with jax.enable_x64(True):  # f_0(A) - f_0(B) comes down to the resolution of float32
        passes = {n: first_pass(p, model, n, count * seeds) for n, seeds in widths.items()}
    counted = {
        "f_0(A) - f_0(B)": -DEPTH / 2, "update of W3": -0.5, "update of b3": -1.0,
        "update of W4": -1.0, "update of W1": 0.0,
    }  # fmt: skip
    sizes = {name: {n: f[:, i] for n, f in passes.items()} for i, name in enumerate(counted)}
    for name, by_width in sizes.items():
        claim = f"exponent of the dependence on the input: {name}"
        rows.append(exponent_row(claim, counted[name], by_width, 0.2))

    run_at = lambda n, count: _setting.functions(
        p, model, ETA, steps, n, count, samples=samples, theta=theta, seed=1
    )
    limit = run_at(tp.inf, replicates)
    start = average(limit[:, 0].mean(axis=1))
    rows.append(Row("f_0 for v = 0.4, n = ∞", OUTPUT_BIAS, start, tolerance=1e-3))
    finite = {n: run_at(n, seeds) for n, seeds in widths.items()}
    distances = {n: _setting.distance(f, limit.mean(axis=0)) for n, f in finite.items()}
    rows.append(exponent_row("exponent of the distance to the limit", -0.5, distances, 0.15))
    spread = np.abs(limit[:, 1:, 0] - limit[:, 1:, 1]).max(axis=1)
    moved = np.abs(np.diff(limit, axis=1)).mean(axis=(1, 2))
    claim = "spread over inputs / change in one step, n = ∞"
    rows.append(Row(claim, at_most(0.05), average(spread / moved)))
    collapsed = "exactly" if spread.max() < 1e-6 else "no"
    rows.append(Row("f_t is independent of its input at t ≥ 1", "no", collapsed))

    def draw(figure: Figure) -> None:
        left, middle, right = panels(figure, 3)
        power_lines(left, sizes, counted)
        left.set(ylabel="relative difference", title="first pass and step: two inputs")
        n = max(finite)
        changes = np.abs(np.diff(limit.mean(axis=0)[:, 0]))
        middle.plot(np.arange(1, steps + 1), changes, "k-s", ms=4, label="|f_t − f_(t−1)|, n = ∞")
        for colour, (label, f) in zip(
            COLOURS, {"n = ∞": limit, f"n = {n}": finite[n]}.items(), strict=False
        ):
            apart = np.abs(f[..., 0] - f[..., 1])[:, 1:]
            bars = 2 * _setting.standard_error(apart)
            middle.errorbar(
                np.arange(1, steps + 1), apart.mean(axis=0), bars, fmt="-o", ms=4, color=colour,
                label=f"|f_t(A) − f_t(B)|, {label}",
            )  # fmt: skip
        middle.set(xlabel="step t", ylabel="size", yscale="log", title="two inputs, v = 0.4")
        middle.set_xticks(np.arange(1, steps + 1))
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
