"""``lax.while_loop`` on numbers of the limit: averages, and what is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles.helpers import error_of
from scipy import integrate, optimize, stats

import tplimit as tp

n = tp.Width("n")
DECLARED = {"v": tp.normal((n,)), "w": tp.normal((n,)), "W": tp.normal((n, n), std=n**-0.5)}


def sampled(noise="sobol", terms=1, samples=4096):
    return tp.sample(
        DECLARED, jax.random.key(2), width=tp.inf, samples=samples, noise=noise, terms=terms
    )


def square(t):
    return jnp.mean(t["v"] ** 2)


def fixed_point(t):
    """The length of tanh layers at infinite depth, q = E[tanh(1.5 sqrt(q) z)²], to a tolerance."""

    def turn(state):
        q, _ = state
        return jnp.mean(jnp.tanh(1.5 * jnp.sqrt(q) * t["v"]) ** 2), q

    return lax.while_loop(lambda s: jnp.abs(s[0] - s[1]) > 1e-5, turn, (square(t), jnp.zeros(())))[
        0
    ]


def exact_fixed_point():
    def gap(q):
        moment = lambda z: np.tanh(1.5 * np.sqrt(q) * z) ** 2 * stats.norm.pdf(z)
        return integrate.quad(moment, -9, 9)[0] - q

    return optimize.brentq(gap, 0.1, 1.0)


PROGRAMS = {
    "count": (lambda t: lax.while_loop(lambda i: square(t) * i < 4.5, lambda i: i + 1, 0), 5),
    "nothing to do": (lambda t: lax.while_loop(lambda x: x > 2.0, lambda x: x / 2, square(t)), 1.0),
    "newton": (
        lambda t: lax.while_loop(
            lambda s: s[1] < 8, lambda s: (0.5 * (s[0] + 2 * square(t) / s[0]), s[1] + 1), (1.0, 0)
        )[0],
        2**0.5,
    ),
    "norm": (
        lambda t: lax.while_loop(
            lambda x: jnp.sum(x**2) > 0.1, lambda x: x / 2, jnp.stack([square(t), 2 * square(t)])
        ),
        [0.125, 0.25],
    ),
    "lower orders": (
        lambda t: lax.while_loop(lambda x: x < 2.5, lambda x: x + square(t) + 1 / len(t["v"]), 0.0),
        3.0,
    ),
    "fixed point": (fixed_point, exact_fixed_point()),
    "in a loop": (
        lambda t: lax.scan(
            lambda x, _: (lax.while_loop(lambda y: y > 1.5, lambda y: y / 2, x + square(t)), x),
            jnp.zeros(()),
            length=9,
        )[0],
        1.0,
    ),
}


@pytest.mark.parametrize(("terms", "noise"), [(1, "sobol"), (2, "random")])
@pytest.mark.parametrize("name", PROGRAMS)
def test_loops_on_averages(name, terms, noise):
    program, exact = PROGRAMS[name]
    found = tp.limit(program)(sampled(noise, terms))
    np.testing.assert_allclose(found, exact, atol=0.05)


REFUSED = {
    "tie": (
        tp.CancellationError,
        lambda t: lax.while_loop(lambda x: x < 3.0, lambda x: x + square(t), 0.0),
    ),
    "turns until it has converged": (
        tp.CancellationError,
        lambda t: lax.while_loop(
            lambda s: jnp.abs(s[0] - square(t)) > 1e-6,
            lambda s: (s[0] + 0.5 * (jnp.mean(t["w"] ** 2) - s[0]), s[1] + 1),
            (0.0, 0),
        )[1],
    ),
    "vectors": (
        tp.UnsupportedOperationError,
        lambda t: jnp.mean(lax.while_loop(lambda x: jnp.mean(x**2) > 0.5, lambda x: x / 2, t["v"])),
    ),
    "growth": (
        tp.UnsupportedOperationError,
        lambda t: lax.while_loop(lambda x: x < 2.5, lambda x: x + len(t["v"]), square(t)),
    ),
    "as long as the width": (
        tp.NoLimitError,
        lambda t: lax.while_loop(lambda i: i < len(t["v"]), lambda i: i + 1, jnp.zeros((), int)),
    ),
    "as long as a root of it": (
        tp.NoLimitError,
        lambda t: lax.while_loop(
            lambda x: x < square(t) * len(t["v"]) ** 0.5, lambda x: x + square(t), 0.0
        ),
    ),
    "products": (
        tp.UnsupportedOperationError,
        lambda t: lax.while_loop(
            lambda x: x < 2.5, lambda x: x + jnp.mean((t["W"] @ t["v"]) ** 2), square(t)
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_or_not_supported_is_refused_with_its_line(name):
    kind, program = REFUSED[name]
    error = error_of(kind, tp.limit(program), sampled(samples=512))
    assert "test_while.py" in str(error)
