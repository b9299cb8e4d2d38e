"""Vectors some of whose coordinates are larger than others by a power of the width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import tplimit as tp

n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "uvw"}


def root(t):
    return t["v"].shape[0] ** 0.5


def normal_mean(function):
    """E f(z) of a standard normal z."""
    return integrate.quad(lambda z: function(z) * stats.norm.pdf(z), -10, 10, limit=200)[0]


def below(t, scale):
    """The smaller one of ``scale v`` and ``w``: large where v is negative."""
    return jnp.minimum(scale * t["v"], t["w"])


HALF_SIZE = np.sqrt(2 / np.pi)  # of a standard normal: the mean of |z|
PROGRAMS = {
    # name: (average, its exponent, its leading coefficient)
    "clip": (lambda t: jnp.mean(jnp.abs(jnp.clip(root(t) * t["v"], -1, 1))), 0, 1),
    "clip, correlated": (
        lambda t: jnp.mean(jnp.clip(root(t) * t["v"], -1, 1) * t["v"]), 0, HALF_SIZE,
    ),
    "clip to two bounds": (lambda t: jnp.mean(jnp.clip(root(t) * t["v"], -1, 3)), 0, 1),
    "clip to vectors": (
        lambda t: jnp.mean(jnp.clip(root(t) * t["v"], t["w"], 2 + t["u"] ** 2)), 0,
        # Bounds may be in the other order: then it is the upper one.
        3 / 2 + normal_mean(
            lambda z: normal_mean(lambda x: min(x, 2 + z**2))) / 2,
    ),
    "clip of what is small": (lambda t: jnp.mean(jnp.clip(t["v"] / root(t), -1, 1) ** 2), -1, 1),
    "relu6": (lambda t: jnp.mean(jax.nn.relu6(root(t) * t["v"])), 0, 3),
    "clip of a product": (
        lambda t: jnp.mean(jnp.clip(root(t) * t["v"] * t["w"], -2, 1) ** 2), 0, 5 / 2,
    ),
    "clip with atoms, of a mask": (
        lambda t: jnp.mean(jnp.abs(jnp.clip((t["w"] > 0) * t["v"] * root(t), -1, 1))), 0, 1 / 2,
    ),
    "clip with atoms, of dead units": (
        lambda t: jnp.mean(jnp.clip(jax.nn.relu(t["v"]) * root(t), -1, 1)), 0, 1 / 2,
    ),
    "maximum with what is small": (
        lambda t: jnp.mean(jnp.maximum(t["v"] / root(t), -2) * t["v"]), -1 / 2, 1,
    ),
    "tanh of a minimum": (lambda t: jnp.mean(jnp.tanh(below(t, root(t)))), 0, -1 / 2),
    "sigmoid of a minimum": (
        lambda t: jnp.mean(jax.nn.sigmoid(below(t, root(t))) ** 2), 0,
        normal_mean(lambda z: 1 / (1 + np.exp(-z)) ** 2) / 2,
    ),
    "root of a choice": (
        lambda t: jnp.mean(jnp.sqrt(jnp.abs(jnp.where(t["u"] > 0, root(t) * t["v"], t["w"])))),
        1 / 4, normal_mean(lambda z: np.sqrt(np.abs(z))) / 2,
    ),
    "root of a choice, on the other coordinates": (
        lambda t: jnp.mean(
            jnp.sqrt(jnp.abs(jnp.where(t["u"] > 0, root(t) * t["v"], t["w"]))) * (t["u"] < 0)
        ), 0, normal_mean(lambda z: np.sqrt(np.abs(z))) / 2,
    ),
    "dead units beside growing ones": (
        lambda t: jnp.mean(jnp.tanh(root(t) * jax.nn.relu(t["v"]) + t["w"] + 1)), 0,
        1 / 2 + normal_mean(lambda z: np.tanh(z + 1)) / 2,
    ),
    "root of dead units": (
        lambda t: jnp.mean(jnp.sqrt(jax.nn.relu(t["v"]) + 1 / root(t))), 0,
        normal_mean(lambda z: np.sqrt(max(z, 0))),
    ),
    "inverse of a choice": (
        lambda t: jnp.mean(1 / (1 + jnp.where(t["u"] > 0, root(t) * t["v"], t["w"]) ** 2)), 0,
        normal_mean(lambda z: 1 / (1 + z**2)) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", [None, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_average(name, terms):
    """Closed forms, within five standard errors: 38 cases, false alarms below 1e-4."""
    function, exponent, coefficient = PROGRAMS[name]
    options = {} if terms is None else {"terms": terms}
    theta = tp.sample(DECLARED, jax.random.key(3), width=tp.inf, samples=2**14, **options)
    found = tp.leading(function)(theta)
    assert float(found.exponent) == exponent
    assert found.coefficient == pytest.approx(coefficient, abs=5 * float(found.stderr) + 1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_networks_have_it(name):
    """The closed forms themselves, at width 2^20: to 5 per cent."""
    function, exponent, coefficient = PROGRAMS[name]
    network = tp.sample(DECLARED, jax.random.key(4), width=2**20)
    scaled = jax.jit(function)(network) / 2.0 ** (20 * exponent)
    assert scaled == pytest.approx(coefficient, rel=0.05)


UNKNOWN = {
    # name: (what goes to a number, that number, the exponent of the difference)
    "tails that are heavy": (
        lambda t: jnp.mean(jnp.sign(root(t) * jnp.abs(t["v"]) - 1 / t["w"] ** 2)), 1, -1 / 4,
    ),
    "poles": (
        lambda t: jnp.mean(jnp.sign(root(t) * t["v"] ** 2 - jnp.tan(t["w"]) ** 2)), 1, -5 / 24,
    ),
    "dead units beside a square": (
        lambda t: jnp.mean(
            jnp.sign(
                root(t) * (jax.nn.relu(t["v"]) + jax.nn.relu(t["w"]) ** 2) - jnp.abs(t["u"])
            )
        ), 1 / 2, -1 / 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("name", UNKNOWN)
def test_share_is_not_taken_for_a_smaller_one(name, terms):
    """The next terms decide a share of the coordinates: times its inverse that is no 0."""
    function, value, exponent = UNKNOWN[name]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    with pytest.raises(tp.LimitError, match=r"of the rest only|not known"):
        tp.limit(lambda t: root(t) ** (-2 * exponent) * (function(t) - value))(theta)
    missing = []
    for size in (2**10, 2**18):
        networks = [tp.sample(DECLARED, jax.random.key(k), width=size) for k in range(8)]
        missing.append(np.mean([value - jax.jit(function)(network) for network in networks]))
    assert np.log(missing[1] / missing[0]) / np.log(2**8) == pytest.approx(exponent, abs=0.05)


def test_what_is_negligible():
    """P(v > 0.3 sqrt(n)) is smaller than every power: no number of coordinates has it."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256, terms=2)
    assert tp.limit(lambda t: jnp.sum(t["v"] / root(t) > 0.3))(theta) == 0
    share = tp.leading(lambda t: jnp.mean(t["v"] / root(t) > 0.3))(theta)
    assert share.coefficient == 0
    assert share.exponent == -np.inf


def test_a_bound_that_is_no_number():
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256, terms=2)
    assert np.isnan(tp.limit(lambda t: jnp.mean(jnp.minimum(t["v"] / root(t), jnp.nan)))(theta))


def test_rows_of_different_orders():
    """Beside one vector for all of them."""

    def averages(t):
        rows = jnp.stack([t["u"] * root(t), t["u"], t["u"] / root(t)])
        return jnp.mean(jnp.minimum(rows, t["w"]), 1)

    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=2**14, terms=2)
    found = tp.leading(averages)(theta)
    expected = [-HALF_SIZE / 2, -(np.pi**-0.5), -HALF_SIZE / 2]
    np.testing.assert_allclose(found.coefficient, expected, atol=5 * float(found.stderr.max()))
    assert list(found.exponent) == [0.5, 0, 0]
