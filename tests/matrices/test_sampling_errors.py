"""Sampling errors of numbers go along into vectors, matrices and images, and decide what is known.

The numbers here vanish by symmetry, so that with one term there is nothing but their error, and
with two the central-limit term is a random number, compared with networks by its moments: one in
2000 such comparisons is off by more than 4.5 standard errors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import assert_same_mean, dense, error_of, sampled

import tplimit as tp

Theta = dict[str, jax.Array]
n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "uvw"} | {"W": tp.normal((n, n), std=n**-0.5)}


def N(t: Theta) -> int:
    return t["v"].shape[0]


def small(t: Theta) -> jax.Array:
    """A mean that is zero: its fluctuation is of order n^-1/2."""
    return jnp.mean(t["v"] * jnp.tanh(t["w"]))


def tied(t: Theta) -> jax.Array:
    """Two vectors, the first of order n^-1/2 though it does not seem so."""
    return jnp.stack([small(t) * t["u"] + t["w"] / jnp.sqrt(N(t)), t["v"]])


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.outer(a, b) / a.shape[0]


MATRICES: dict[str, Callable[[Theta], Any]] = {
    "an outer product": lambda t: outer(t["u"] * small(t), t["v"]) @ t["v"],
    "a sum of matrices": lambda t: (t["W"] + outer(t["u"] * small(t), t["v"])) @ t["v"]
    - t["W"] @ t["v"],
    "a product of matrices": lambda t: (t["W"] @ outer(t["u"] * small(t), t["v"])) @ t["v"],
    "an image of a small vector": lambda t: t["W"] @ (small(t) * t["u"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRICES)
def test_images_vanish_within_their_error(name: str):
    """One term does not know the image, two know its order and its mean square."""
    square = lambda t: jnp.mean(MATRICES[name](t) ** 2)
    one = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=1)
    kept = tp.limit(lambda t: (t, MATRICES[name](t)))(one)  # no new parameters: one term stays
    error_of(tp.CancellationError, tp.leading(lambda s: jnp.mean(s[1] ** 2)), kept)
    two = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=2)
    assert tp.leading(square)(two).exponent == -1


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_images_have_the_mean_square_of_networks(name: str):
    run = lambda t: N(t) * jnp.mean(MATRICES[name](t) ** 2)
    assert_same_mean(sampled(run, DECLARED, tp.inf, 24), dense(run, DECLARED, 480, 96), 4 / 480)


DECISIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "a sign": jnp.sign,
    "a comparison": lambda x: (x > 0).astype(float),
    "saturation": lambda x: jnp.tanh(jnp.sqrt(x.shape[-1]) * x),
    "an index": lambda x: jnp.stack([jnp.argmax(jnp.stack([a, -a]), 0).astype(float) for a in x]),
    "rounding": jnp.floor,
}


@pytest.mark.parametrize("name", [*DECISIONS][:2] + [
    pytest.param(name, marks=pytest.mark.slow) for name in [*DECISIONS][2:]
])  # fmt: skip
def test_one_vector_does_not_vouch_for_another(name: str):
    """What decides of the first is its next term, whatever is known of the second."""
    run = lambda t: jnp.mean(t["w"] * DECISIONS[name](tied(t)), 1)
    assert_same_mean(sampled(run, DECLARED, tp.inf, 24), dense(run, DECLARED, 480, 96), 10 / 480)


def test_products_of_low_rank_know_one_term():
    """Refused, not wrong: the average of the factors is zero within its error."""
    product = lambda t: (outer(t["v"], t["w"]) @ outer(t["u"], t["v"])) @ t["v"]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=2)
    error_of(tp.CancellationError, tp.leading(lambda t: jnp.mean(product(t) ** 2)), theta)


def test_updates_keep_their_error_from_call_to_call():
    """The factor of the update is zero within its error in the call that makes it."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=1)
    update = tp.limit(lambda t: (t, {**t, "W": t["W"] + outer(t["u"] * small(t), t["v"])}))
    moved = tp.leading(lambda s: jnp.mean(((s[1]["W"] - s[0]["W"]) @ s[0]["v"]) ** 2))
    error_of(tp.CancellationError, moved, update(theta))


def test_vectors_keep_their_error_from_call_to_call():
    """A small part of the vector is an accident, which is all that a difference leaves."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=1)
    update = tp.limit(lambda t: (t, {**t, "u": t["u"] - small(t) * t["w"]}))
    moved = tp.leading(lambda s: jnp.mean((s[1]["u"] - s[0]["u"]) ** 2))
    error_of(tp.CancellationError, moved, update(theta))


def test_two_means_that_are_equal_in_truth():
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=1)
    kept = tp.limit(lambda t: (t, jnp.mean(t["v"] ** 2) * t["u"] - jnp.mean(t["w"] ** 2) * t["u"]))
    error_of(tp.CancellationError, tp.limit(lambda s: jnp.mean(s[1] > 0)), kept(theta))


@pytest.mark.parametrize("terms", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_errors_do_not_grow_with_training(terms: int):
    """ReLU networks in muP at a rate near the edge of stability: every step is decided.

    Their bars are wider than the spread over keys, by a bounded factor.
    """
    x = jax.random.normal(jax.random.key(1), (4, 3))
    y = jnp.sign(x[:, 0])
    declared = {"U": tp.normal((3, n)), "v": tp.normal((n,))}
    declared |= {name: tp.normal((n, n), std=n**-0.5) for name in ("W1", "W2")}
    rates = {"U": 1.0, "W1": 0.0, "W2": 0.0, "v": 1.0}

    def loss(t: Theta) -> jax.Array:
        h = jax.nn.relu(x @ t["U"] / jnp.sqrt(3))
        h = jax.nn.relu(jax.nn.relu(h @ t["W1"]) @ t["W2"])
        return jnp.mean((h @ t["v"] / N(t) - y) ** 2) / 2

    def step(t: Theta) -> tuple[Theta, jax.Array]:
        scales = {name: jnp.power(1.0 * N(t), power) for name, power in rates.items()}
        move = lambda p, scale, g: p - scale * g
        return jax.tree.map(move, t, scales, jax.grad(loss)(t)), loss(t)

    state: Any = tp.sample(declared, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    train = tp.limit(step)
    for _ in range(20):
        state, value = train(state)
    last = tp.leading(lambda t: 1 + loss(t))(state)
    assert value < 0.5
    assert last.stderr < 0.5 * last.coefficient


def test_what_has_no_error_has_none():
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024)
    found = tp.leading(lambda t: jnp.mean((t["W"] @ t["v"]) ** 2))(theta)
    assert 0 < found.stderr < 0.1
    np.testing.assert_allclose(found.coefficient, 1, atol=0.1)


@pytest.mark.parametrize("noise", ["sobol", "random"])
def test_bars_behind_shares_of_a_width(noise: str):
    """A gate made of the halves of a width: moments are matched in the whole, not in the halves.

    A spread of 24 samples is known to 15 %; bounds 1/1.5 and 5, and 3 standard deviations.
    """
    declared = {"E": tp.normal((3, n)), "W": tp.normal((n, 2 * n), std=n**-0.5)}
    declared["V"] = tp.normal((n, n), std=n**-0.5)
    x = jnp.asarray([[1.0, 0.2, 0.5]])

    def gated(t: Theta) -> jax.Array:
        gate, value = jnp.split(jnp.tanh(x @ t["E"]) @ t["W"], 2, axis=1)
        return jnp.mean(((jax.nn.silu(gate) * value) @ t["V"]) ** 2)

    found = [
        tp.leading(gated)(tp.sample(declared, key, width=tp.inf, samples=1024, noise=noise))
        for key in jax.random.split(jax.random.key(0), 24)
    ]
    spread = np.std([one.coefficient for one in found], ddof=1)
    bar = np.mean([one.stderr**2 for one in found]) ** 0.5
    assert 1 / 1.5 / 1.45 < bar / spread < 5 * 1.45
