"""Sums as a program has written them: what stands in one with both signs is gone, with all that is
unknown of it, and what is left has its own terms, however small it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp

n = tp.Width("n")
THETA = {name: tp.normal((n,)) for name in "vuw"} | {"U": tp.normal((3, n))}


@pytest.fixture(scope="module", params=[1, 2])
def state(request):
    """Vectors of which a part of order 1/n, or the next term, is unknown."""

    def moved(t):
        n = float(t["v"].shape[0])
        return t | {"v": jnp.tanh(t["v"] + t["w"] / n**0.5), "U": jnp.sin(t["U"] + t["w"] / n)}

    theta = tp.sample(
        THETA, jax.random.key(0), width=tp.inf, samples=4096, terms=request.param, noise="sobol"
    )
    return tp.limit(moved)(theta)


def update(t, n):
    """E[((v - u^2 / n^2) - v) n^2] = -1."""
    after = t["v"] - t["u"] ** 2 / n**2
    return n**2 * jnp.mean(after - t["v"]), -1


def updates(t, n):
    """Of two steps that of the second alone: 3, the fourth moment."""
    first = t["u"] / n
    after = (t["v"] + first) + t["w"] ** 4 / n**3
    return n**3 * jnp.mean((after - t["v"]) - first), 3


def in_another_order(t, n):
    small = t["u"] ** 2 / n**2
    return n**2 * jnp.mean(((small + t["v"]) + t["w"]) - (t["w"] + t["v"])), 1


def of_rows(t, n):
    """One vector is subtracted from three."""
    after = t["U"] - t["u"] ** 2 / n
    return n * jnp.mean(after - t["U"], axis=1), [-1, -1, -1]


def negations(t, n):
    after = -(t["u"] ** 2 / n**2 - t["v"])
    return n**2 * jnp.mean(-after + t["v"]), 1


def straight_through(t, n):
    """A function with the derivative of another one, as quantised networks have it."""
    through = t["v"] + jax.lax.stop_gradient(jnp.sign(t["v"]) - t["v"])
    return jnp.mean(through**2), 1


def its_derivative(t, n):
    def passed(v):
        return jnp.mean(t["u"] ** 2 * (v + jax.lax.stop_gradient(jnp.sign(v) - v)))

    return n * jnp.mean(jax.grad(passed)(t["v"])), 1


def of_averages(t, n):
    """The sampling error is that of what is left."""
    mean = jnp.mean(t["v"] ** 2)
    return n * ((mean + jnp.mean(t["u"] ** 2) / n) - mean), 1


def nothing(t, n):
    """All of it cancels."""
    both = t["v"] + t["w"]
    return n**5 * jnp.mean(jnp.square((both - t["w"]) - t["v"])), 0


def once_of_twice(t, n):
    """What is added twice and subtracted once stays once."""
    twice = t["u"] + t["u"]
    return jnp.mean((twice - t["u"]) ** 2), 1


def of_many(t, n):
    """A dozen updates, 1 + 2 + ... + 12 = 78."""
    after = t["v"]
    for k in range(1, 13):
        after = after + k * t["u"] ** 2 / n**2
    return n**2 * jnp.mean(after - t["v"]), 78


def in_a_loop(t, n):
    """Each turn tells its own update."""

    def turn(state, _):
        after = state + t["u"] ** 2 / n**2
        return after, n**2 * jnp.mean(after - state)

    return jax.lax.scan(turn, t["v"], None, length=3)[1], [1, 1, 1]


def of_integers(t, n):
    """Bins are counted without round-off."""
    a, b = (jnp.round(3 * t[name]).astype(jnp.int32) for name in "vu")
    return jnp.mean(jnp.abs(((a + b) - a) - b).astype(jnp.float32)), 0


PROGRAMS = [
    update, updates, in_another_order, of_rows, negations, straight_through, its_derivative,
    of_averages, nothing, once_of_twice, of_many, in_a_loop, of_integers,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_what_is_left(state, program):
    """Moments of Gaussian vectors over 4096 Sobol' points: 2 % of a fourth moment."""
    expected = []

    def found(t):
        value, exact = program(t, float(t["v"].shape[0]))
        expected.append(exact)
        return value

    np.testing.assert_allclose(tp.limit(found)(state), expected[0], rtol=0.02, atol=1e-7)


def test_the_error_is_that_of_what_is_left(state):
    """An average beside one that it is subtracted from again."""

    def both(t):
        n = float(t["v"].shape[0])
        mean, small = jnp.mean(t["v"] ** 2), jnp.mean(t["u"] ** 2)
        return (mean + small / n) - mean, small / n

    left, alone = tp.leading(both)(state)
    assert left.exponent == alone.exponent == -1
    np.testing.assert_allclose(left.stderr, alone.stderr, rtol=1e-6)
    np.testing.assert_allclose(left.coefficient, alone.coefficient, rtol=1e-6)


def test_derivatives_of_what_cancels(state):
    """That of the sum is not that of its words: both summands have derivatives."""

    def slope(t):
        n = float(t["v"].shape[0])
        return jax.grad(lambda s: jnp.mean(((t["v"] + s * t["u"] ** 2 / n) - t["v"]) * n))(0.5)

    np.testing.assert_allclose(tp.limit(slope)(state), 1, rtol=0.02)


def test_updates_of_matrices():
    """Of the second step of a matrix its own update is left, without those that it has had."""
    theta = tp.sample(
        THETA | {"W": tp.normal((n, n), std=n**-0.5)}, jax.random.key(0), width=tp.inf, terms=2
    )
    step = lambda t: t | {"W": t["W"] + jnp.outer(t["u"], t["v"]) / float(t["v"].shape[0])}
    theta = tp.limit(step)(theta)

    def moved(t):
        n = float(t["v"].shape[0])
        after = t["W"] - jnp.outer(t["u"], t["v"]) / n**2
        return jnp.mean(jnp.tanh(n * ((after - t["W"]) @ t["v"])) ** 2)

    exact = tp.limit(lambda t: jnp.mean(jnp.tanh(t["u"]) ** 2))(theta)
    np.testing.assert_allclose(tp.limit(moved)(theta), exact, rtol=0.01)
    assert tp.limit(lambda t: jnp.sum(((t["W"] + t["W"].T) - t["W"].T - t["W"]) ** 2))(theta) == 0
