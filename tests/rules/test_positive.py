"""What is positive whatever the errors of its factors and summands may divide, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.errors import CancellationError

N = tp.Width("n")
THETA = {name: tp.normal((N,)) for name in "uvw"}


def uncertain(t):
    """Three numbers that are 0 in truth and have errors of order 1."""
    product = lambda a, b: jnp.mean(jnp.tanh(t[a]) ** 2 * t[b] ** 2) - jnp.mean(jnp.tanh(t[a]) ** 2)
    return 64 * jnp.stack([product("u", "v"), product("v", "w"), product("w", "u")])


POSITIVE = {
    "softmax": jax.nn.softmax,
    "logsumexp": jax.nn.logsumexp,
    "one plus": lambda x: 1 / (1 + jnp.exp(x)),
    "product": lambda x: 1 / (jnp.exp(x[0]) * jnp.cosh(x[1])),
    "root": lambda x: jax.lax.rsqrt(jnp.cosh(x) + x**2),
    "the larger": lambda x: 1 / jnp.maximum(jnp.exp(x[0]), x[1]),
    "some of them": lambda x: jnp.log(jnp.sum(jnp.exp(x)[1:]) + jnp.abs(x[0])),
    "a quotient": lambda x: 1 / (jnp.exp(x) / jnp.exp(x[::-1]) + 1),
}

#: A sampling error hides whether these divide by zero.
UNKNOWN = {
    "difference": lambda x: 1 / (jnp.exp(x[0]) - jnp.exp(x[1])),
    "minus one": lambda x: 1 / (jnp.exp(x) - 1),
    "square": lambda x: 1 / x**2,
    "absolute": lambda x: 1 / (jnp.abs(x) + x**2),
    "of several powers": lambda x: 1 / (jnp.stack([jnp.exp(x[0]), 0.0]) + jnp.abs(x[:2])),
    "the smaller": lambda x: 1 / jnp.minimum(jnp.exp(x[0]), x[1]),
}


def sampled(terms):
    return tp.sample(THETA, jax.random.key(3), width=tp.inf, samples=256, terms=terms)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", POSITIVE)
def test_positive_numbers_divide(name, terms):
    theta, function = sampled(terms), POSITIVE[name]
    x, found = tp.limit(lambda t: (uncertain(t), function(uncertain(t))))(theta)
    assert np.all(np.abs(x) > 1e-3)  # an accident of the particles
    np.testing.assert_allclose(found, function(x), rtol=1e-5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_be_zero_does_not(name):
    with pytest.raises(CancellationError, match="zero within the sampling error"):
        tp.limit(lambda t: UNKNOWN[name](uncertain(t)))(sampled(1))


def test_rows_of_other_powers():
    """What is away from 0 at one power says nothing of a row where another power leads."""

    def function(t):
        x = uncertain(t)
        rows = jnp.stack([jnp.exp(x[0]), jnp.zeros(())]) * jnp.ones(())
        grown = jnp.stack([jnp.zeros(()), t["u"].shape[0] * jnp.abs(x[1])])
        return 1 / (rows + grown)

    with pytest.raises(CancellationError, match="zero within the sampling error"):
        tp.limit(function)(sampled(1))


def test_bars_of_positive_numbers_are_not_cut():
    """``exp`` of a number with a small error has the error of the delta method."""
    value = lambda t: jnp.mean(t["u"] ** 2 * t["v"] ** 2)
    one, other = (tp.leading(f)(sampled(1)) for f in (value, lambda t: jnp.exp(20 * value(t))))
    assert other.stderr == pytest.approx(float(20 * one.stderr * other.coefficient), rel=1e-4)


#: Truth is where these functions end; the sampling error hides on which side a sample is.
EDGES = {
    "square root": lambda x: jnp.sqrt(x[0]),
    "power": lambda x: x[0] ** 1.5,
    "powers": lambda x: jnp.power(x[0], jnp.array([0.5, 0.7])),
    "logarithm": lambda x: jnp.log1p(x[0] - 1),
    "root of a difference": lambda x: jnp.sqrt(jnp.exp(x[0]) - jnp.exp(x[1])),
}


@pytest.mark.parametrize("key", [0, 1, 2])
@pytest.mark.parametrize("name", EDGES)
def test_edges_are_refused_whatever_the_sample(name, key):
    theta = tp.sample(THETA, jax.random.key(key), width=tp.inf, samples=256)
    with pytest.raises(CancellationError, match="zero within the sampling error"):
        tp.limit(lambda t: EDGES[name](uncertain(t)))(theta)


def test_roots_of_averages_with_few_samples():
    """Averages of what is never negative have roots, whatever their error."""
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=32, terms=1)
    for power in (2, 6):
        value = lambda t, p=power: jnp.mean((t["v"] * t["u"]) ** p)
        found = tp.limit(lambda t, f=value: (f(t), jnp.sqrt(f(t)), jnp.linalg.norm(t["v"] * t["u"])
                                             / t["v"].shape[0] ** 0.5))(theta)  # fmt: skip
        np.testing.assert_allclose(found[1], found[0] ** 0.5, rtol=1e-5)


def test_roots_of_what_is_never_negative():
    """A norm of numbers that are zero within their errors is one, and so is a spread."""
    x, norm, std = tp.limit(
        lambda t: (uncertain(t), jnp.linalg.norm(uncertain(t)), jnp.std(t["u"]))
    )(sampled(1))
    np.testing.assert_allclose(norm, np.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(std, 1, rtol=1e-3)
