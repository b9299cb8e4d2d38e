"""Only one choice of learning rates moves every layer by order one

Theorems 2.3.1 and 2.3.2: if every layer's update contributes Θ(1) to an integrable network with L ≥
3 in its first two steps, then the exponents of the first step are γ(p), -(1 + S)/2 for the outer
and -1 - S/2 for the inner layers with S = 1 + p + ... + p^(L-1), and those of the second step are
(-1, -2, ..., -2, -1). So no choice that is constant in time is both stable and not trivial. Here
the exponent of each layer is moved by -1/2, 0 or 1/2 on its own: 3^4 choices for L = 3, in the
first step, and in the second one after a first step with γ. The theorems ask for p ≥ 2; ReLU (p =
1) behaves in the same way. With p = 2 and L = 3 the sizes are doubly exponential and scatter over
networks by factors of e^13, so p = 2 is counted with L = 3 but measured with L = 2.

Exponents are those of the geometric mean over networks, here: in the second step sizes scatter so
much that root mean squares are those of a few networks (notes).
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.networks.activations import resolve
from tplimit.output.figures import COLOURS, panels
from tplimit.output.statistics import weighted_power
from tplimit.parameterizations import large_first_rates
from tplimit.reproduction import Measurement, Result, Row, at_most, jackknife

from . import _setting

ETA = 0.7
HALF = Fraction(1, 2)
# An exponent that is a multiple of 1/2 is told from its neighbours at half the distance.
NEAR = 0.25
STEPS = ("first", "second")
MEASURED = {
    "ReLU, L = 3": _setting.network(3, _setting.root_2_relu),
    "ReLU², L = 2": _setting.network(2, _setting.scaled_relu2),
}
COUNTED = {
    "ReLU, L = 3": _setting.network(3, "relu"),
    "ReLU, L = 4": _setting.network(4, "relu"),
    "ReLU², L = 2": _setting.network(2, "relu2"),
    "ReLU², L = 3": _setting.network(3, "relu2"),
}
Offsets = Sequence[Sequence[Fraction]]


def run(quick: bool) -> Result:
    widths = {64: 2, 128: 2} if quick else {512: 64, 1024: 32, 2048: 16, 4096: 8}
    rows, measured, errors, counted = [], {}, {}, {}
    for name, model in COUNTED.items():
        for step in STEPS:
            table = np.array([count(model, o, step) for o in grid(model)], float)
            rows.append(only_one(f"{name}, {step} step, counted", model, table))
        rows.append(constant_in_time(f"{name}, the same in every step, counted", model))
    for name, model in list(MEASURED.items())[: 1 if quick else 2]:
        # Of degree 2 the gradients of the first step are below the range of float32.
        with jax.enable_x64(True):
            found = contributions(model, widths, grid(model))
        for step, squares in zip(STEPS, found, strict=True):
            key = f"{name}, {step} step"
            fit = weighted_power(squares, typical=True)
            measured[key], errors[key] = fit.exponent, fit.stderr
            counted[key] = np.array([count(model, o, step) for o in grid(model)], float)
            rows.append(only_one(f"{key}, measured", model, fit.exponent))
            claim = f"{key}: root mean square of measured - counted exponents"
            apart = np.abs(fit.exponent - counted[key])
            typical, tails = (differences(squares, counted[key], kind) for kind in (True, False))
            note = f"of {apart.size}, the largest is {apart.max():.2f}; p < 0.01 for "
            note += f"{np.mean(fit.p < 0.01):.0%} of the fits; of root mean squares over networks "
            note += f"{tails.value:.2g} ± {tails.stderr:.1g}"
            rows.append(Row(claim, at_most(NEAR), typical, note=note))

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(measured), (3.6 * len(measured), 3.6))
        for a, (key, values) in zip(axes, measured.items(), strict=True):
            a.axline((0, 0), slope=1, color="#8a8a8a", lw=1.0, ls=(0, (4, 3)))
            layers = values.shape[1]
            for l, colour in zip(range(layers), COLOURS, strict=False):
                shift = 0.06 * (l - (layers - 1) / 2)
                a.plot(
                    counted[key][:, l] + shift, values[:, l], "o", ms=3, alpha=0.7,
                    color=colour, label=f"layer {l + 1}",
                )  # fmt: skip
            a.set(xlabel="exponent by counting powers", ylabel="measured exponent", title=key)
        axes[0].legend(frameon=False, fontsize=8)

    return Result(
        rows,
        {"measured": measured, "standard errors": errors, "counted": counted},
        {"η": ETA, "widths and seeds": widths, "measured with": "√2 ReLU, α ReLU²"},
        draw,
    )


def grid(model: tp.Model) -> Offsets:
    return list(itertools.product((-HALF, Fraction(0), HALF), repeat=model.layers))


def only_one(claim: str, model: tp.Model, table: np.ndarray) -> Row:
    """The choices under which every layer's contribution is Θ(1); there should be one, γ."""
    offsets = grid(model)
    settled = [offsets[i] for i, row in enumerate(table) if np.abs(row).max() < NEAR]
    return Row(
        f"{claim}: choices of {len(offsets)} that move every layer, besides that of the theorem",
        "no other",
        words(settled),
    )


def words(offsets: Offsets) -> str:
    if len(offsets) == 1 and not any(offsets[0]):
        return "no other"
    moved = [" ".join(f"{float(o):+g}" for o in row) for row in offsets]
    return "moved by " + ", ".join(moved) if moved else "none"


def constant_in_time(claim: str, model: tp.Model) -> Row:
    """Choices of multiples of 1/2 for the outer and the inner layers, the same in every step."""
    naive, found = tp.parameterizations.naive_ip, []
    gamma = large_first_rates(model)
    # From far above to far below both sets of exponents.
    for outer, inner in itertools.product(range(int(2 * gamma[0]) - 2, 2), repeat=2):
        regime = tp.classify(naive(c=(HALF * outer, HALF * inner, HALF * outer)), model)
        moves = regime.stable and all(
            regime.exponents[f"{u}_{l}"] == 0
            for u in ("first_update", "update")
            for l in range(1, model.layers + 1)
        )
        if moves:
            found.append((outer / 2, inner / 2))
    claim += ": choices on a grid that move every layer"
    return Row(claim, "none", ", ".join(map(str, found)) or "none")


def count(model: tp.Model, offset: Sequence[Fraction], step: str) -> list[Fraction]:
    """Exponents of the layers' contributions where c is moved by `offset` in one of the steps."""
    llr = tp.parameterizations.ip_llr
    which, update = {"first": ("first", "first_update"), "second": ("c", "update")}[step]
    moved = [e + o for e, o in zip(llr.exponents(which, model), offset, strict=True)]
    # Counting ends where something grows, in the second step, or where nothing changes any more.
    regime = tp.classify(llr(**{which: moved}), model)
    return [regime.exponents[f"{update}_{l}"] for l in range(1, model.layers + 1)]


def differences(squares: dict[int, np.ndarray], counted: np.ndarray, typical: bool) -> Measurement:
    """Root mean square of the differences of fitted and counted exponents."""

    def statistic(*groups: tuple[np.ndarray]) -> float:
        fit = weighted_power({n: s for n, (s,) in zip(squares, groups, strict=True)}, typical)
        return float(np.mean((fit.exponent - counted) ** 2) ** 0.5)

    return jackknife(statistic, *((s,) for s in squares.values()))


def contributions(
    model: tp.Model, widths: dict[int, int], offsets: Offsets
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Mean squares of contributions in the first and second step.

    By width, (seeds, choices, layers). Updates are linear in the learning rates: c + δ multiplies
    that of IP-LLR by n^-δ.
    """
    p = _setting.named("ip_llr")
    step, phi = p.step(model, _setting.linear, ETA), resolve(model.activation)
    x = jnp.asarray(_setting.INPUTS[:3, None])

    def sizes(before: Any, after: Any, following: jax.Array, n: int) -> jax.Array:
        change = jax.tree.map(jnp.subtract, after, before)

        def of_choice(factors: jax.Array) -> jax.Array:
            h, found = following, []
            for l in range(1, model.layers + 1):
                update = factors[l - 1] * (h @ change[f"W{l}"])
                found.append(jnp.mean(update**2))
                bias = factors[0] * change["b1"] + before["b1"] if l == 1 else 0.0
                h = phi(h @ before[f"W{l}"] + update + bias)
            return jnp.stack(found)

        factors = float(n) ** -jnp.array([[float(o) for o in row] for row in offsets])
        return jax.vmap(of_choice)(factors)

    @jax.jit
    def both(theta: Any) -> tuple[jax.Array, jax.Array]:
        n, states = theta["W1"].shape[-1], [theta]
        for t in range(2):
            states.append(step(states[-1], (x[t], jnp.ones(1)))[0])
        start, one, two = (p.effective(model, state) for state in states)
        return sizes(start, one, x[1], n), sizes(one, two, x[2], n)

    squares: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
    for n, seeds in widths.items():
        thetas = (tp.sample(p.theta(model), jax.random.key(s), width=n) for s in range(seeds))
        for by_width, values in zip(squares, zip(*map(both, thetas), strict=True), strict=True):
            by_width[n] = np.array(values)
    return squares
