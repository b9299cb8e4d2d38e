r"""Logits in four parts: initial weights, increments of one layer, of the other, of both.

With $a = a_0 + \delta a$, $w = w_0 + \delta w$ and slopes $\varphi'$ of the trained network, a
network with the leaky ReLU is $f = f_0 + f_a + f_w + f_{aw}$, where for instance
$f_{aw} = \sum_r \delta a_r\, \varphi'_r\, \delta w_r \cdot x$. Claims (G-GT): in the mean-field
scaling all four have a limit; in the kernel scalings $f_{aw}$, quadratic in the increments,
vanishes like $\rho^{-2 q_\sigma - 2}$; in the intermediate one $f_0$ vanishes too. Networks are
fitted after twenty steps. `tp.series` finds the orders of the other three after one step: their
leading exponents, or that of the remainder where nothing is left above it; for $f_0$, which changes
by the units whose sign flips, the remainder says no more than O(1). (The source fits -0.97 for
$f_{aw}$ of NTK, -0.47 for that of the intermediate scaling, and -0.35 for its $f_0$.)

The limit of $f_0$ in the mean-field scaling is found from networks whose units come in pairs
$\pm a_r$, with an initial function of 0. It is not 0, since it does not fall with the width, but so
small that the initial function, which vanishes like $\rho^{-1/2}$, is larger up to widths that
nobody trains.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.commands.data import random_points
from tplimit.output.figures import panels, power_lines
from tplimit.parameterizations import Parameterization, logistic
from tplimit.reproduction import Measurement, Result, Row, combination, exponent_row, jackknife

from . import _regions
from ._regions import LEAK, LIMITS

RATE, STEPS = 0.5, 20
SEEDS = {2**10: 128, 2**12: 64, 2**14: 32, 2**16: 16}
QUICK = {2**8: 16, 2**9: 16}
PAIRED = {2**11: 64, 2**14: 16}
PARTS = ("f_0", "f_a", "f_w", "f_aw")
STATED = {
    "MF": ("0", "0", "0", "0"),
    "NTK": ("0", "0", "0", "-1"),
    "intermediate": ("-1/4", "0", "0", "-1/2"),
}


def run(quick: bool) -> Result:
    seeds = QUICK if quick else SEEDS
    data = random_points(16, 16, inputs=10)
    x, y, z = (jnp.asarray(a) for a in (data.x, data.y, data.x_test))
    model = _regions.network(10)
    steps = 2 if quick else STEPS
    rows, sizes = [], {}
    for name, stated in STATED.items():
        p = LIMITS[name]
        found = _at_infinity(p, model, (x[:4], y[:4], z[:2]))
        claim = f"{name}: orders of f_a, f_w, f_aw after one step, by the interpreter"
        rows.append(Row(claim, ", ".join(stated[1:]), ", ".join(found)))
        sizes[name] = _sizes(p, model, (x, y, z), seeds, steps)
        for part, exponent in zip(PARTS, stated, strict=True):
            predicted = _fraction(exponent)
            claim = f"{name}: exponent of {part} of networks"
            rows.append(exponent_row(claim, predicted, sizes[name][part], 0.1))
    row, paired = _limit_row(LIMITS["MF"], model, (x, y, z), sizes["MF"]["f_0"], steps)
    rows.append(row)
    setting = {
        "widths": list(seeds),
        "seeds": list(seeds.values()),
        "points": "16 random ones in dimension 10 with random labels, 16 to observe",
        "activation": f"leaky ReLU {LEAK}",
        "η": RATE,
        "steps": steps,
    }
    values = {"sizes": sizes, "squares of f_0 of units in pairs": paired}
    return Result(rows, values, setting, lambda figure: draw(figure, sizes))


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def parts(
    p: Parameterization, start: Mapping[str, Any], moved: Mapping[str, Any], z: jax.Array
) -> dict[str, jax.Array]:
    """The four parts at the points z, for weights `start` that moved by `moved`."""
    n = start["W1"].shape[-1]
    scale = (n / p.reference) ** -float(p.exponents("a", 1)[1])
    slope = jnp.where(z @ start["W1"] + z @ moved["W1"] > 0, 1.0, LEAK)
    layers = {"0": start, "δ": moved}
    part = lambda a, w: scale * ((slope * (z @ layers[w]["W1"])) @ layers[a]["W2"])
    return {"f_0": part("0", "0"), "f_a": part("δ", "0"), "f_w": part("0", "δ"),
            "f_aw": part("δ", "δ")}  # fmt: skip


def _at_infinity(p: Parameterization, model: Any, data: tuple[Any, ...]) -> list[str]:
    """Orders of f_a, f_w and f_aw after one step."""
    x, y, z = data
    predict = p.predict(model)

    def seen(theta: Mapping[str, Any]) -> dict[str, jax.Array]:
        moved = _regions.increments(p, model, theta, lambda t: -RATE * logistic(predict(t, x), y))
        return parts(p, theta, moved, z)

    theta = tp.sample(p.theta(model), jax.random.key(0), width=tp.inf, samples=2**14, terms=2)
    found = tp.series(seen)(theta)
    return [str(_order(found[part])) for part in PARTS[1:]]


def _order(series: tp.Series) -> Any:
    """Exponent of the first term, or of what is unknown where there is none."""
    first = np.max(np.asarray(series.terms[0][0], object))
    return max(first, np.max(np.asarray(series.remainder, object)))


def _trained(
    p: Parameterization, model: Any, data: tuple[Any, ...], start: Any, steps: int
) -> dict[str, jax.Array]:
    """The parts after training."""
    x, y, z = data
    step = p.step(model, "logistic", RATE)
    end = jax.lax.fori_loop(0, steps, lambda _, state: step(state, (x, y))[0], start)
    return parts(p, start, jax.tree.map(jnp.subtract, end, start), z)


def _sizes(
    p: Parameterization, model: Any, data: tuple[Any, ...], seeds: Mapping[int, int], steps: int
) -> dict[str, dict[int, np.ndarray]]:
    """Root mean squares of the parts over points, by width, after training."""

    def one(key: jax.Array, n: int) -> dict[str, jax.Array]:
        trained = _trained(p, model, data, tp.sample(p.theta(model), key, width=n), steps)
        return {name: _regions.size(f) for name, f in trained.items()}

    sizes: dict[str, dict[int, np.ndarray]] = {part: {} for part in PARTS}
    for n, count in seeds.items():
        keys = jax.random.split(jax.random.key(n), count)
        found = jax.jit(lambda keys, n=n: jax.lax.map(lambda key: one(key, n), keys))(keys)
        for part in PARTS:
            sizes[part][n] = np.asarray(found[part], float)
    return sizes


def _limit_row(
    p: Parameterization,
    model: Any,
    data: tuple[Any, ...],
    sizes: Mapping[int, np.ndarray],
    steps: int,
) -> tuple[Row, dict[int, Any]]:
    """Whether f_0 has a limit other than 0, and from which width on it exceeds the initial one.

    And by width the mean squares that it is judged by, their errors and seeds.
    """

    def one(key: jax.Array, n: int) -> jax.Array:
        half = tp.sample(p.theta(model), key, width=n)
        start = {
            "W1": jnp.concatenate([half["W1"], half["W1"]], axis=1),
            "W2": jnp.concatenate([half["W2"], -half["W2"]]),
        }
        return _trained(p, model, data, start, steps)["f_0"]

    squares = {}
    for n, count in PAIRED.items():
        keys = jax.random.split(jax.random.key(n), count)
        found = jax.lax.map(lambda key, n=n: one(key, n), keys)
        squares[n] = jackknife(_square_of_mean, (np.asarray(found, float),))
    # Of the root mean square, by the errors of the squares relative to them.
    first, last = squares.values()
    span = 2 * np.log(max(PAIRED) / min(PAIRED))
    relative = [1 / (square.value * span) for square in (last, first)]
    error = combination(relative, (last, first))
    exponent = Measurement(np.log(last.value / first.value) / span, error.stderr, error.degrees)
    narrow, root = min(sizes), last.value**0.5
    # The initial function falls like n^-1/2.
    width = narrow * np.mean(sizes[narrow]) ** 2 / root**2
    row = Row(
        "MF: exponent of f_0 of networks with units in pairs, which start at 0",
        0.0,
        exponent,
        0.1,
        note=f"root mean square {root:.2g}; the initial function is larger up to {width:.0e}",
    )
    return row, {n: (m.value, m.stderr, PAIRED[n]) for n, m in squares.items()}


def _square_of_mean(group: tuple[np.ndarray]) -> float:
    """Mean square of the mean of (seeds, points), without its noise."""
    (values,) = group
    products = values @ values.T / values.shape[1]
    return float((products.sum() - np.trace(products)) / (len(values) * (len(values) - 1)))


def draw(figure: Figure, sizes: Mapping[str, Any]) -> None:
    for axes, (name, stated) in zip(panels(figure, 3, (10.2, 3.3)), STATED.items(), strict=True):
        exponents = dict(zip(PARTS, map(_fraction, stated), strict=True))
        power_lines(axes, {f"${k}$": v for k, v in _labelled(sizes[name]).items()},
                    {f"${k}$": v for k, v in _labelled(exponents).items()})  # fmt: skip
        axes.set_title(f"{name}, after {STEPS} steps", fontsize=9)
        axes.legend(frameon=False, fontsize=7, ncols=2)
    figure.axes[0].set_ylabel("root mean square over points")


def _labelled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {part.replace("_aw", "_{aw}"): values[part] for part in PARTS}
