"""Functions of all pairs of coordinates: sums, products and whole powers are of low rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import dense, error_of

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    **{name: tp.normal((n,)) for name in "vwu"},
    "W": tp.normal((n, n), std=n**-0.5),
}


def width(t):
    return float(t["v"].shape[0])


def pairs(t):
    return t["v"][:, None] - 2 * t["w"][None, :]


def energy(t):
    """A mean-field interaction of all pairs, and its derivative."""
    return jnp.mean((t["v"][:, None] - t["v"][None, :] + 0.5) ** 2) * width(t)


#: Programs and their limits, for coordinates N(0, 1).
CLOSED = {
    "applied": (lambda t: jnp.mean((pairs(t) @ t["w"] / width(t)) ** 2), 4.0),
    "applied from the left": (lambda t: jnp.mean((t["v"] @ pairs(t) / width(t)) ** 2), 1.0),
    "sum over one width": (lambda t: jnp.mean(pairs(t).sum(1) * t["v"]) / width(t), 1.0),
    "square": (lambda t: jnp.mean(pairs(t) ** 2), 5.0),
    "jnp.square": (lambda t: jnp.mean(jnp.square(pairs(t))), 5.0),
    "fourth power": (lambda t: jnp.mean(pairs(t) ** 4), 3 * 25.0),
    "distances": (lambda t: jnp.mean((t["v"][:, None] - t["v"][None, :]) ** 2), 2.0),
    "einsum": (lambda t: jnp.einsum("ij,ij->", pairs(t), pairs(t)) / width(t) ** 2, 5.0),
    "transposed": (
        lambda t: jnp.einsum("ij,ji->", pairs(t), jnp.outer(t["w"], t["v"])) / width(t) ** 2,
        0.0,
    ),
    "times another": (lambda t: jnp.mean(pairs(t) * jnp.outer(t["v"] ** 2, t["w"] ** 2)), 0.0),
    "norm": (lambda t: jnp.linalg.norm(jnp.outer(t["v"], t["w"])) / width(t), 1.0),
    "gradient": (lambda t: jnp.mean(jax.grad(energy)(t)["v"] * t["v"]), 4.0),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name, terms):
    program, exact = CLOSED[name]
    t = tp.sample(DECLARED, jax.random.key(3), width=tp.inf, samples=2**13, terms=terms)
    assert abs(tp.limit(program)(t) - exact) <= 0.02 * (1 + exact)


def beside_a_gaussian_matrix(t):
    h = (t["W"] + (t["v"][:, None] + jnp.tanh(t["w"])[None, :]) / width(t)) @ t["w"]
    return jnp.stack([jnp.mean(jnp.tanh(h) ** 2), jnp.mean(h * t["v"])])


def norm_of_a_gradient(t):
    """Of muP: rates of order n, and a gradient clipped by its norm."""
    loss = lambda W: jnp.mean(jnp.tanh(W @ jnp.tanh(t["v"])) * t["w"])
    g = jax.grad(loss)(t["W"])
    size = jnp.sqrt(jnp.sum(g**2))
    moved = t["W"] - g / size
    return jnp.mean(jnp.tanh(moved @ t["v"]) * t["w"])


@pytest.mark.parametrize("program", [beside_a_gaussian_matrix, norm_of_a_gradient])
def test_beside_networks(program):
    """Averages of 24 networks of width 1000, four of their errors and a bias of 1/n."""
    found = np.ravel(tp.limit(program)(tp.sample(DECLARED, jax.random.key(0), width=tp.inf)))
    networks = dense(program, DECLARED, 1000, 24)
    error = np.std(networks, axis=0, ddof=1) / len(networks) ** 0.5
    assert np.all(np.abs(np.mean(networks, axis=0) - found) <= 4 * error + 0.01)


ENTRYWISE = {
    "absolute value": (lambda t: jnp.mean(jnp.abs(pairs(t))), (10 / np.pi) ** 0.5),
    "root": (lambda t: jnp.mean(jnp.sqrt(pairs(t) ** 2)), (10 / np.pi) ** 0.5),
    "cosine": (lambda t: jnp.mean(jnp.cos(pairs(t))), np.exp(-2.5)),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", ENTRYWISE)
def test_entrywise_functions_in_closed_form(name, terms):
    """Of ``v_a - 2 w_b``, a Gaussian of variance 5."""
    program, exact = ENTRYWISE[name]
    t = tp.sample(DECLARED, jax.random.key(3), width=tp.inf, samples=2**10, terms=terms)
    assert tp.limit(program)(t) == pytest.approx(exact, rel=1e-2)


REFUSED = {
    "maximum": lambda t: jnp.mean(jnp.maximum(t["v"][:, None], t["w"][None, :])),
    "comparison": lambda t: jnp.mean((t["v"][:, None] > t["w"][None, :]) * 1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_of_two_vectors_are_named(name):
    t = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256)
    error = error_of(tp.UnsupportedOperationError, tp.limit(REFUSED[name]), t)
    assert "test_pairs.py" in str(error)
