"""Functions of pairs of coordinates: entrywise functions of matrices without a Gaussian part.

``sum_b psi(x_a, y_b) z_b / n`` is an average over pairs of particles: exact beside NumPy on dense
matrices of the same particles, beside closed forms, and beside networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    **{name: tp.normal((n,)) for name in "uvwz"},
    "U": tp.normal((3, n)),
    "V": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
}


def sampled(noise="random", samples=512, terms=1, key=0):
    return tp.sample(
        DECLARED, jax.random.key(key), width=tp.inf, samples=samples, noise=noise, terms=terms
    )


def one(t):
    return jnp.outer(t["u"], t["v"])


def three(t):
    return t["U"].T @ t["V"]


FUNCTIONS = {
    "tanh": lambda t: jnp.tanh(three(t)),
    "absolute value": lambda t: jnp.abs(three(t)),
    "sign": lambda t: jnp.sign(three(t)),
    "square": lambda t: three(t) ** 2,
    "root": lambda t: jnp.sqrt(three(t) ** 2 + 0.1),
    "inverse root": lambda t: jax.lax.rsqrt(three(t) ** 2 + 0.1),
    "exponential": lambda t: jnp.exp(-(three(t) ** 2)),
    "logarithm": lambda t: jnp.log(1 + three(t) ** 2),
    "power": lambda t: jnp.abs(three(t)) ** 1.5,
    "maximum": lambda t: jnp.maximum(three(t), one(t)),
    "minimum of a number": lambda t: jnp.minimum(three(t), 0.3),
    "clip": lambda t: jnp.clip(three(t), -0.5, 1.0),
    "chosen": lambda t: jnp.where(three(t) > 0.2, one(t), -three(t)),
    "mask": lambda t: (three(t) > one(t)).astype(float),
    "both": lambda t: ((three(t) > 0) & (one(t) < 0.5)).astype(float),
    "quotient": lambda t: one(t) / (1 + three(t) ** 2),
    "product": lambda t: one(t) * jnp.tanh(three(t)),
    "rows": lambda t: t["w"][:, None] * jnp.tanh(three(t)),
    "columns": lambda t: jnp.tanh(three(t) + t["w"]),
    "over columns": lambda t: jnp.abs(one(t)) / (1 + t["w"] ** 2),
    "sum": lambda t: jnp.tanh(three(t)) + 2 * one(t) - jnp.abs(one(t)),
    "transposed": lambda t: jnp.tanh(three(t)).T,
    "chain": lambda t: jnp.sin(jnp.tanh(three(t)) * one(t)) ** 3,
    "rounded": lambda t: jnp.floor(three(t)),
    "stack": lambda t: jnp.tanh(jnp.stack([three(t), one(t)])).sum(0),
}
USES = {
    "applied": lambda f, t: f(t) @ t["z"] / t["z"].shape[0],
    "from the left": lambda f, t: t["z"] @ f(t) / t["z"].shape[0],
    "rows": lambda f, t: f(t).sum(1) / t["z"].shape[0],
    "columns": lambda f, t: f(t).mean(0),
    "of low rank": lambda f, t: (f(t) @ one(t)) @ t["v"] / t["z"].shape[0] ** 2,
    "twice": lambda f, t: f(t) @ (f(t) @ t["z"]) / t["z"].shape[0] ** 2,
    "product": lambda f, t: (f(t) @ f(t)) @ t["z"] / t["z"].shape[0] ** 2,
    "weighed": lambda f, t: (t["W"] + f(t) / t["z"].shape[0]) @ t["z"] - t["W"] @ t["z"],
}


def particles(value):
    """The leading coefficients of a vector at all particles."""
    return np.asarray(value._value.terms[0].coefficient)


def of_particles(t):
    """The same parameters as arrays: at a finite width that is the number of particles."""
    return {name: jnp.asarray(particles(t[name])) for name in "uvwzUV"} | {
        "W": jnp.zeros((512, 512))
    }


@pytest.mark.parametrize(
    ("name", "use"),
    [(name, "applied") for name in FUNCTIONS]
    + [(name, use) for name in ("tanh", "sign", "rows") for use in USES if use != "applied"],
)
def test_beside_dense_matrices_of_the_same_particles(name, use):
    """Averages over all pairs of particles, to round-off."""
    theta, function = sampled(), FUNCTIONS[name]
    found = particles(tp.limit(lambda t: USES[use](function, t))(theta))
    exact = USES[use](function, of_particles(theta))
    assert_allclose(found, exact, atol=3e-4 * float(jnp.max(jnp.abs(exact))))


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", ["tanh", "sign", "quotient", "chosen", "columns", "square"])
def test_beside_networks(name, terms):
    """``mean(tanh(f(t) z / n)^2)``. 16 networks; a false alarm in 10^5."""

    def function(t):
        return jnp.mean(jnp.tanh(FUNCTIONS[name](t) @ (1 + t["v"]) / t["z"].shape[0]) ** 2)

    limits = [tp.limit(function)(sampled("sobol", 1024, terms, key)) for key in range(8)]
    networks = [
        function(tp.sample(DECLARED, jax.random.key(100 + key), width=512)) for key in range(16)
    ]
    error = np.hypot(np.std(networks) / 4, np.std(limits) / 8**0.5)
    # Networks of width n have a bias of order 1/n.
    assert abs(np.mean(networks) - np.mean(limits)) < 4.5 * error + 8 / 512


def test_closed_form():
    """``E_b[sign(u v_b) v_b] = sign(u) (2/pi)^(1/2)``."""
    theta = sampled("sobol", 4096)
    found = tp.limit(lambda t: jnp.sign(one(t)) @ t["v"] / t["z"].shape[0])(theta)
    assert_allclose(
        particles(found), np.sign(particles(theta["u"])) * (2 / np.pi) ** 0.5, rtol=5e-3
    )


def test_sign_of_rank_one_is_of_rank_one():
    theta = sampled()
    entries = tp.limit(lambda t: jnp.sign(one(t)) @ t["z"] / t["z"].shape[0])(theta)
    vectors = tp.limit(
        lambda t: jnp.outer(jnp.sign(t["u"]), jnp.sign(t["v"])) @ t["z"] / t["z"].shape[0]
    )(theta)
    assert_allclose(particles(entries), particles(vectors), atol=1e-6)


def test_what_is_linear_equals_low_rank():
    theta = sampled()
    entries = tp.limit(lambda t: jnp.maximum(three(t), -1e9) @ t["z"] / t["z"].shape[0])(theta)
    low = tp.limit(lambda t: three(t) @ t["z"] / t["z"].shape[0])(theta)
    assert_allclose(particles(entries), particles(low), atol=2e-6)


def test_deferred_is_exact():
    """At a finite width pairs are all pairs of coordinates."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.Deferred(64))
    found = tp.limit(lambda t: jnp.tanh(three(t)) @ t["z"])(theta)
    dense = {name: jnp.asarray(particles(theta[name])) for name in "UVz"}
    exact = jnp.tanh(dense["U"].T @ dense["V"]) @ dense["z"]
    assert_allclose(particles(found), exact, atol=2e-4)


@pytest.mark.parametrize("function", [jnp.tanh, jnp.abs, jnp.sign, jnp.square])
def test_functions_of_a_gaussian_matrix_are_refused(function):
    def program(t):
        return function(t["W"] + 0.1 * one(t) / t["z"].shape[0]) @ t["z"]  # here

    with pytest.raises(tp.UnsupportedOperationError, match="Gaussian part") as caught:
        tp.limit(program)(sampled())
    assert f"{__file__}:{program.__code__.co_firstlineno + 1}" in str(caught.value)


@pytest.mark.parametrize("function", [jnp.sign, lambda g: g / jnp.sqrt(g**2)])
def test_of_nothing_but_an_accident_no_sign_is_taken(function):
    """A matrix whose factor is zero in truth, within the sampling error."""

    def program(t):
        zero = jnp.mean(jnp.abs(t["u"])) - jnp.mean(jnp.abs(t["v"]))
        return function(zero * one(t)) @ t["z"] / t["z"].shape[0]

    for noise in ("random", "sobol"):
        with pytest.raises(tp.LimitError, match=r"zero within the sampling error|equal within"):
            tp.limit(program)(sampled(noise))


def test_orders():
    """``n^-1/2 sqrt(g^2)`` with ``g`` of order ``n^-1``: a power more in what sums over a width."""

    def program(t):
        size = t["z"].shape[0]
        gradient = one(t) / size
        return jnp.mean((jnp.sqrt(gradient**2) / size**0.5) @ (1 + t["z"]))

    found = tp.leading(program)(sampled("sobol", 2048))
    assert found.exponent == -0.5
    assert abs(found.coefficient - 2 / np.pi) < 5 * found.stderr
