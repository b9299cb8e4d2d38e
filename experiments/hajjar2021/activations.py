"""Smooth activations start to learn one step later, and GELU's half slope slows the first step

Section 2.6 trains IP-LLR with ReLU, GELU, ELU and tanh, all with the exponents of p = 1. With ReLU
and L = 3 the network has learnt after one step. With a smooth activation, φ(0) = 0 and slope ρ at
0, the first pass is linear beyond layer 1: every first update carries the factor ρ^(L-1) (1/4 for
GELU), and f_1 → 0 by symmetry, so that learning shows in f_2. Relative to their initial values the
hidden weights move by Θ(1) in IP-LLR and by n^-1/2 in muP. None of this is in the source.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.stats import norm

import tplimit as tp
from tplimit.networks.activations import resolve
from tplimit.output.figures import COLOURS, panels, power_lines
from tplimit.reproduction import Result, Row, at_least, at_most, average, exponent_row

from . import _setting

DEPTH, STEPS = 3, 2
# Slope at 0, and a base learning rate at which f_2 is of order one.
ACTIVATIONS = {"relu": (1.0, 2.0), "tanh": (1.0, 1.0), "gelu": (0.5, 4.0)}


def run(quick: bool) -> Result:
    names = ("tanh",) if quick else tuple(ACTIVATIONS)
    widths = {64: 4, 128: 4} if quick else {256: 64, 512: 48, 1024: 24}
    samples, replicates = (2**9, 2) if quick else (2**13, 4)
    llr, mup = _setting.named("ip_llr"), _setting.named("mup")
    rows, curves, firsts, movements, limits, updates = [], {}, {}, {}, {}, {}
    for name in names:
        model, (slope, eta) = _setting.network(DEPTH, name), ACTIVATIONS[name]
        regime = tp.classify(llr, model)
        learns = "learns features" if regime.feature_learning else "does not"
        rows.append(Row(f"{name}: regime by counting", "learns features", learns))
        measured = {n: measure(llr, model, eta, n, seeds) for n, seeds in widths.items()}
        finite = {n: f for n, (f, _) in measured.items()}
        steps = 1 if quick or name == "relu" else 2
        limit = _setting.functions(llr, model, eta, steps, tp.inf, replicates, samples=samples)
        first = _setting.largest(limit[:, 1])
        claim = f"{name}: largest |f_1|, n = ∞"
        rows.append(Row(claim, at_least(0.01) if name == "relu" else at_most(1e-3), first))
        if steps == 2:
            second = _setting.smallest(limit[:, 2])
            rows.append(Row(f"{name}: smallest |f_2|, n = ∞", at_least(0.01), second))
        firsts[name] = {n: np.abs(f[:, 1]).mean(axis=1) for n, f in finite.items()}
        known = 0.0 if name == "relu" else -0.5
        rows.append(exponent_row(f"{name}: exponent of |f_1|", known, firsts[name], 0.2))
        if name != "relu":
            size = first_update(name, slope, eta)
            wide = max(widths)
            updates[name] = measured[wide][1][:, 0]
            claim = f"{name}: n · RMS of the output weights' first update, width {wide}"
            note = f"{size / slope ** (DEPTH - 1):.3g} without ρ^(L-1)" if slope != 1 else ""
            rows.append(Row(claim, size, average(updates[name]), 0.1 * size, note))
        other = {n: measure(mup, model, eta, n, seeds) for n, seeds in widths.items()}
        for title, runs, known in (("IP-LLR", measured, 0.0), ("muP", other, -0.5)):
            moved = {n: sizes[:, 1] for n, (_, sizes) in runs.items()}
            claim = f"{name}: exponent of the movement of W2, relative, {title}"
            rows.append(exponent_row(claim, known, moved, 0.15))
            movements[f"{name}, {title}"] = moved
        curves[name] = (limit.mean(axis=0), finite)
        limits[name] = limit

    def draw(figure: Figure) -> None:
        left, middle, right = panels(figure, 3)
        for colour, (name, (limit, finite)) in zip(COLOURS, curves.items(), strict=False):
            t, n = np.arange(STEPS + 1), max(finite)
            error = 2 * _setting.standard_error(finite[n][..., 0])
            left.errorbar(
                t, finite[n][..., 0].mean(axis=0), error, fmt="s", ms=4, color=colour,
                label=f"{name}, n = {n}",
            )  # fmt: skip
            left.plot(t[: len(limit)], limit[:, 0], color=colour, lw=1.5)
        left.plot([], [], color="#222222", lw=1.5, label="n = ∞")
        left.set(xlabel="step t", ylabel="f_t(A)", title="IP-LLR, L = 3", xticks=t)
        left.legend(frameon=False, fontsize=8)
        known = {name: 0.0 if name == "relu" else -0.5 for name in firsts}
        power_lines(middle, firsts, known)
        middle.set(ylabel="mean of |f_1(A)|, |f_1(B)|", title="after the first step")
        known = {name: -0.5 if name.endswith("muP") else 0.0 for name in movements}
        power_lines(right, movements, known)
        right.set(ylabel="|W2_t − W2_0| / |W2_0|", title="movement of the hidden weights")

    return Result(
        rows,
        {"|f_1|": firsts, "movements": movements, "n = ∞": limits, "first updates": updates},
        {"L": DEPTH, "steps": STEPS, "η": {k: v[1] for k, v in ACTIVATIONS.items()},
         "widths and seeds": widths, "samples": samples, "replicates": replicates},
        draw,
    )  # fmt: skip


def first_update(name: str, slope: float, eta: float) -> float:
    """η ρ^(L-1) √E[φ(g)²], g of variance |ξ_0|² + 1: the limit of n times the RMS of ΔW^(L+1).

    Beyond layer 1 the first pass is linear, so that its second moments are all those of φ(h^1).
    """
    phi, scale = resolve(name), float(np.sqrt(_setting.INPUTS[0] @ _setting.INPUTS[0] + 1))
    square = lambda g: float(phi(jnp.float32(g * scale))) ** 2 * norm.pdf(g)
    return eta * slope ** (DEPTH - 1) * quad(square, -8, 8, limit=100, epsrel=1e-4)[0] ** 0.5


def measure(
    p: tp.Parameterization, model: tp.Model, eta: float, n: int, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """f_0, f_1, .. (seeds, steps + 1, points); per seed, n · RMS of the first update of the output
    weights and the movement of W2 over all steps, relative to its initial value.
    """
    inner, predict = p.step(model, "mse", eta), p.predict(model)
    last, points = f"W{model.layers}", jnp.asarray(_setting.POINTS)

    def step(state: Any, batch: Any) -> Any:
        start, theta = state
        theta, _ = inner(theta, batch)
        before, after = p.effective(model, start), p.effective(model, theta)
        update = n * jnp.sqrt(jnp.mean((after[last] - before[last]) ** 2))
        moved = jnp.linalg.norm(after["W2"] - before["W2"]) / jnp.linalg.norm(before["W2"])
        return (start, theta), jnp.stack([update, moved])

    run = tp.train(
        step, p.theta(model), _setting.batches(STEPS), width=n, key=jax.random.key(n),
        replicates=seeds, init=lambda theta: (theta, theta),
        observe=lambda state: predict(state[1], points),
    )  # fmt: skip
    sizes = np.asarray(run.replicates.outputs, float)
    functions = np.asarray(run.replicates.observations, float)
    return functions, np.stack([sizes[:, 0, 0], sizes[:, -1, 1]], axis=1)
