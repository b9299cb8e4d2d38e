"""Trajectories of the logits: networks of finite width, and limits given an initial function."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp
from tplimit.commands.data import digits
from tplimit.networks.models import Model
from tplimit.parameterizations import Parameterization, logistic

from . import _regions


class Problem(NamedTuple):
    """Training points first among `points`, their labels, and the base learning rate."""

    model: Model
    points: jax.Array
    y: jax.Array
    lr: float

    @property
    def x(self) -> jax.Array:
        return self.points[: len(self.y)]


def digit_problem(lr: float) -> Problem:
    """32 digits to train on and 16 to test, 3 against 8."""
    data = digits(32, 16)
    points = jnp.concatenate([jnp.asarray(data.x), jnp.asarray(data.x_test)])
    return Problem(_regions.network(data.x.shape[1]), points, jnp.asarray(data.y), lr)


def networks(
    p: Parameterization, problem: Problem, n: int, keys: jax.Array, steps: int
) -> np.ndarray:
    """Logits of networks of width n before each step and after the last: (keys, steps + 1, points).

    One network after the other, in one compiled call: wide ones fill the processor by themselves.
    """
    model, points, y, lr = problem
    predict, step = p.predict(model), p.step(model, "logistic", lr)
    batch = (problem.x, y)

    def one(key: jax.Array) -> jax.Array:
        theta = tp.sample(p.theta(model), key, width=n)
        # The first step may add to the state, such as the initial parameters that IC-MF keeps.
        state, _ = step(theta, batch)
        _, later = jax.lax.scan(
            lambda state, _: (step(state, batch)[0], predict(state, points)),
            state, length=steps,
        )  # fmt: skip
        return jnp.concatenate([predict(theta, points)[None], later])

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys), float)


def _given(f: jax.Array, y: jax.Array) -> jax.Array:
    """The logistic loss of f + f_0, with labels and f_0 stacked in y."""
    return logistic(f + y[1], y[0])


def limits_given(
    p: Parameterization,
    problem: Problem,
    initial: Sequence[np.ndarray],
    steps: int,
    samples: int,
    seed: int = 0,
) -> np.ndarray:
    """One limit for each initial function, f_0 + lim (f_t - f_0): (initial, steps + 1, points).

    The network itself starts at 0 (`init_output="zero"`), and its loss is taken at f_t + f_0. Each
    limit has particles of its own, so that the spread over them holds the Monte Carlo error.
    """
    model, points, y, lr = problem
    if p.initial_a is not None:
        p = p(initial_a=None)  # the function that it would add is the given one
    predict, step = p.predict(model), p.step(model, _given, lr)
    observe = lambda state: predict(state, points)
    found = []
    for i, f_0 in enumerate(initial):
        f_0 = jnp.asarray(f_0, jnp.float32)
        batch = (problem.x, jnp.stack([y, f_0[: len(y)]]))
        run = tp.train(
            step, p.theta(model), [batch] * steps, width=tp.inf, samples=samples,
            key=jax.random.fold_in(jax.random.key(seed), i), terms=2, init_output="zero",
            observe=observe, progress=False,
        )  # fmt: skip
        found.append(run.observations + np.asarray(f_0, float))
    return np.array(found)


def starts_at_zero(p: Parameterization, model: Any) -> bool:
    """Whether the initial function vanishes as the width grows."""
    return bool(tp.classify(p, model).exponents["f_0"] < 0)
