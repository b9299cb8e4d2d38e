"""The thirteen regions, the named limits, and what all scripts measure of a network.

Everything here is plain JAX: the same functions are run at finite width and, by `tp.leading` and
`tp.limit`, at infinite width.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp
from tplimit.networks.models import Model
from tplimit.output.statistics import jackknife_variance, log_root
from tplimit.parameterizations import (
    Parameterization,
    golikov,
    ic_mean_field,
    intermediate,
    logistic,
    sym_default,
)
from tplimit.reproduction import Measurement, power_law

#: The source's test points (q_σ, q̃), one in each region, in the order of e_K - e_0. The triangle's
#: is (-0.66, 0.5) there; exponents that the interpreter tracks have small denominators.
REGIONS: dict[str, tuple[Fraction, Fraction]] = {
    "post-MF": (Fraction(-3, 2), Fraction(3, 2)),
    "MF": (Fraction(-1), Fraction(1)),
    "sym-def–MF": (Fraction(-3, 4), Fraction(3, 4)),
    "sym-default": (Fraction(-1, 2), Fraction(1, 2)),
    "pre-sym-default": (Fraction(0), Fraction(0)),
    "post-MF–NTK": (Fraction(-1), Fraction(3, 4)),
    "MF–NTK": (Fraction(-3, 4), Fraction(1, 2)),
    "triangle": (Fraction(-2, 3), Fraction(1, 2)),
    "NTK–sym-def": (Fraction(-1, 2), Fraction(1, 4)),
    "pre-NTK–sym-def": (Fraction(0), Fraction(-1, 4)),
    "post-NTK": (Fraction(-1), Fraction(1, 2)),
    "NTK": (Fraction(-1, 2), Fraction(0)),
    "pre-NTK": (Fraction(0), Fraction(-1, 2)),
}  # fmt: skip

#: The limits that the sources name, around a reference width d*.
LIMITS: dict[str, Parameterization] = {
    "MF": golikov(-1, 1),
    "NTK": golikov(Fraction(-1, 2), 0),
    "sym-default": sym_default,
    "intermediate": intermediate(0.75),
    "IC-MF": ic_mean_field,
}
REFERENCE = 128  # the reference width d* of both sources
LEAK = 0.1


def leaky_relu(h: jax.Array) -> jax.Array:
    """The activation of both sources."""
    return jax.nn.leaky_relu(h, LEAK)


def network(inputs: int) -> Model:
    """One hidden layer, no bias."""
    return tp.mlp(1, inputs, activation=leaky_relu)


def rates(p: Parameterization, model: Model, n: Any) -> dict[str, Any]:
    """Powers of the width in the learning rates of both layers, at width n."""
    return {
        f"W{l}": (n / p.reference) ** -float(c)
        for l, c in enumerate(p.exponents("c", model), start=1)
    }


def increments(
    p: Parameterization, model: Model, theta: Mapping[str, Any], loss: Callable[[Any], jax.Array]
) -> dict[str, jax.Array]:
    """What a step with base rate 1 subtracts from the parameters.

    Not the difference of parameters: where it vanishes relative to them, one that is taken after
    the addition has lost it.
    """
    gradient = jax.grad(loss)(theta)
    rate = rates(p, model, theta["W1"].shape[-1])
    return {name: rate[name] * gradient[name] for name in rate}


def kernel(p: Parameterization, model: Model, theta: Mapping[str, Any], z: jax.Array) -> jax.Array:
    """The tangent kernel K_a + K_w of the points z, learning rates included, η = 1: (z, z).

    A corrected initial function has no part in it, for its correction is a constant of training.
    """
    predict = lambda t: p(initial_a=None).predict(model)(t, z)
    rows = []
    for i in range(z.shape[0]):
        along = increments(p, model, theta, lambda t, i=i: predict(t)[i])
        rows.append(jax.jvp(predict, (theta,), (along,))[1])
    return jnp.stack(rows)


def first_step(
    p: Parameterization, model: Model, x: jax.Array, y: jax.Array, z: jax.Array, lr: float
) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
    """A function of the initial parameters: what one step of gradient descent does.

    f_0 and df_1, the initial logits and their first increments, and K_0, the tangent kernel, at
    the points z; speed, the squared increments of the output weights relative to the weights.
    """
    predict, step = p.predict(model), p.step(model, "logistic", lr)

    def seen(theta: Mapping[str, Any]) -> dict[str, jax.Array]:
        f_0 = predict(theta, z)
        after, _ = step(dict(theta), (x, y))
        # What a corrected initial function is taken from, named as in the states of `step`.
        origin = {} if p.initial_a is None else {"origin": theta}
        loss = lambda t: lr * logistic(predict({**t, **origin}, x), y)
        moved = increments(p, model, theta, loss)["W2"]
        return {
            "f_0": f_0,
            "df_1": predict(after, z) - f_0,
            "K_0": kernel(p, model, theta, z[:2]),
            "speed": jnp.mean(moved**2) / jnp.mean(theta["W2"] ** 2),
        }

    return seen


def size(a: jax.Array) -> jax.Array:
    """Root mean square of all entries."""
    return jnp.sqrt(jnp.mean(a**2))


def fitted(
    sizes: Mapping[str, Mapping[int, np.ndarray]],
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """By quantity, the fitted exponent, and what it is fitted to.

    That is, by width, the logarithm of the root mean square, its standard error and the seeds.
    """
    point = lambda s: (log_root(s**2), jackknife_variance(s**2) ** 0.5, len(s))
    points = {name: {n: point(s) for n, s in of.items()} for name, of in sizes.items()}
    return {name: power_law(by_width) for name, by_width in sizes.items()}, points


def exponents_at_infinity(
    p: Parameterization, model: Model, data: tuple[Any, ...], lr: float, samples: int
) -> dict[str, Fraction]:
    """Largest exponents that the interpreter finds for what `first_step` returns."""
    theta = tp.sample(p.theta(model), jax.random.key(0), width=tp.inf, samples=samples, terms=2)
    found = tp.leading(first_step(p, model, *data, lr))(theta)
    return {name: np.max(np.asarray(v.exponent, object)) for name, v in found.items()}


def sizes_by_width(
    p: Parameterization,
    model: Model,
    data: tuple[Any, ...],
    lr: float,
    seeds: Mapping[int, int],
) -> dict[str, dict[int, np.ndarray]]:
    """By quantity and width, one size per seed: root mean squares over points.

    Besides what `first_step` returns, dK: ‖K_1 - K_0‖ / ‖K_0‖, the relative change of the kernel.
    """
    (x, y, z), step = data, p.step(model, "logistic", lr)
    see, few = first_step(p, model, x, y, z, lr), z[:2]

    def run(key: jax.Array, n: int) -> dict[str, jax.Array]:
        theta = tp.sample(p.theta(model), key, width=n)
        found = {name: size(v) for name, v in see(theta).items()}
        after, _ = step(theta, (x, y))
        weights = {name: after[name] for name in theta}
        before = kernel(p, model, theta, few)
        change = kernel(p, model, weights, few) - before
        return found | {"dK": size(change) / size(before)}

    sizes: dict[str, dict[int, np.ndarray]] = {}
    for n, count in seeds.items():
        keys = jax.random.split(jax.random.key(n), count)
        every = jax.jit(lambda keys, n=n: jax.lax.map(lambda key: run(key, n), keys))(keys)
        for name, values in every.items():
            sizes.setdefault(name, {})[n] = np.asarray(values, float)
    return sizes
