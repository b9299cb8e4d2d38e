"""The hybrid of muP and IP is IP-LLR, exactly, at every finite width

Proposition 2.4.1: HP trains muP, but after the first step it shrinks the initial weights of layers
2 .. L to the integrable size. For a positively homogeneous activation f_t is then that of IP-LLR
for all t ≥ 1, if the first learning rate is η χ_0(IP) / χ_0(HP), where χ_0 is the derivative of the
loss at f_0. Measured in float64 from the same standard normals. With several outputs no rate does
it, since the vectors χ_0 are not parallel; HP then has to be given χ_0(IP) itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import panels, power_lines
from tplimit.reproduction import Result, Row, at_least, at_most

from . import _setting

STEPS, ETA = 4, 0.8
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "ReLU": jax.nn.relu,
    "α ReLU²": _setting.scaled_relu2,
}


def run(quick: bool) -> Result:
    widths = (24,) if quick else (32, 128, 512)
    seeds = 2 if quick else 8
    cases = [(2, 1)] if quick else [(2, 1), (3, 1), (3, 2)]
    rows, curves = [], {}
    with jax.enable_x64(True):
        for name, activation in ACTIVATIONS.items():
            for depth, outputs in cases:
                model = tp.mlp(depth, 3, outputs, activation=activation, bias="first")
                found = {
                    n: np.array([differences(model, n, seed) for seed in range(seeds)])
                    for n in widths
                }
                largest = np.max([f.max(axis=0) for f in found.values()], axis=0)
                smallest = np.min([f.min(axis=0) for f in found.values()], axis=0)
                claim = f"{name}, L = {depth}, {outputs} output" + "s" * (outputs > 1)
                what = "corrected η" if outputs == 1 else "χ_0(IP)"
                rows.append(
                    Row(f"{claim}: relative difference, {what}", at_most(1e-12), largest[0])
                )
                rows.append(Row(f"{claim}: the same, η as it is", at_least(1e-9), smallest[1]))
                if outputs == 1 and depth == 2:
                    curves[f"{name}, corrected η"] = {
                        n: np.maximum(f[:, 0], 1e-17) for n, f in found.items()
                    }
                    curves[f"{name}, η as it is"] = {n: f[:, 1] for n, f in found.items()}

    def draw(figure: Figure) -> None:
        (axes,) = panels(figure, 1, (6.0, 3.6))
        power_lines(axes, curves, {})
        axes.set(ylabel="relative difference", title="HP − IP-LLR, L = 2, t = 1 … 4")

    return Result(
        rows,
        {"differences": curves},
        {"η": ETA, "steps": STEPS, "widths": list(widths), "seeds": seeds, "dtype": "float64"},
        draw,
    )


def differences(model: tp.Model, n: int, seed: int) -> tuple[float, float]:
    """max |f_t(HP) - f_t(IP-LLR)| / max |f_t|, t ≥ 1: with the correction, and without."""
    llr, hybrid = _setting.named("ip_llr"), _setting.named("hp")
    theta = tp.sample(llr.theta(model), jax.random.key(seed), width=n)
    (start, integrable), (other, mup) = (trajectory(p, model) for p in (llr, hybrid))
    expected = integrable(theta, start(theta))
    corrected, plain = mup(theta, start(theta)), mup(theta, other(theta))
    first, second = (
        float(np.abs(f - expected).max() / np.abs(expected).max()) for f in (corrected, plain)
    )
    return first, second


@functools.lru_cache
def trajectory(
    p: tp.Parameterization, model: tp.Model
) -> tuple[Callable[[Any], jax.Array], Callable[[Any, jax.Array], jax.Array]]:
    """χ_0 as a function of θ, and f_1 .. f_4 at the test points as one of θ and χ_0.

    η χ_0 is what enters the first update, so that it may be said by χ_0 what a corrected η does.
    """
    predict, later = p.predict(model), p.step(model, "mse", ETA)
    first = p.step(model, lambda f, chi: jnp.sum(f * chi), ETA)
    data = _setting.batches(STEPS)
    if model.outputs > 1:
        data = [(x, y[:, None] * jnp.array([1.0, -0.5])) for x, y in data]
    x, y = data[0]

    def functions(theta: Any, chi: jax.Array) -> jax.Array:
        state, _ = first(theta, (x, chi))
        seen = [predict(state, jnp.asarray(_setting.POINTS))]
        for batch in data[1:]:
            state, _ = later(state, batch)
            seen.append(predict(state, jnp.asarray(_setting.POINTS)))
        return jnp.stack(seen)

    return jax.jit(lambda theta: predict(theta, x) - y), jax.jit(functions)
