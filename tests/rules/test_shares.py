"""Shares of a width, such as heads and gates: what is zero by symmetry is zero there, too."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import dense

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    **{name: tp.normal((n,)) for name in "vwu"},
    **{name: tp.normal((n, n), std=n**-0.5) for name in "QKV"},
    "U": tp.normal((3, n)),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0], [0.1, 0.2, 0.3]])


def sampled(terms=1, noise="sobol", samples=4096):
    return tp.sample(
        DECLARED, jax.random.key(5), width=tp.inf, samples=samples, terms=terms, noise=noise
    )


POWERS = list(itertools.product(range(4), range(4), range(3)))


def moments(t, odd=lambda x: x):
    """E[odd(v_1)^a v_2^b w_1^c] over halves of v and w, for all powers."""
    (first, second), (other, _) = t["v"].reshape(2, -1), t["w"].reshape(2, -1)
    return [jnp.mean(odd(first) ** a * second**b * other**c) for a, b, c in POWERS]


def gaussian(power):
    return 0 if power % 2 else np.prod(np.arange(1, power, 2.0))


@pytest.mark.parametrize("noise", ["sobol", "random"])
@pytest.mark.parametrize("terms", [1, 2])
def test_moments_of_halves(terms, noise):
    """Those that symmetry knows to vanish do, and no other one is taken for zero. Within 6 errors
    of 2048 independent coordinates: a false alarm in 10^7 programs."""
    found = tp.series(moments)(sampled(terms, noise))
    known = 0
    for powers, series in zip(POWERS, found, strict=True):
        exact = np.prod([gaussian(q) for q in powers])
        spread = np.prod([gaussian(2 * q) for q in powers]) ** 0.5
        exponent, coefficient = series.terms[0]
        if exponent == -np.inf:
            assert exact == 0, powers
            assert float(series.remainder) == -0.5, "fluctuations of a share are not known"
            known += 1
        else:
            assert exponent == 0, powers
            assert abs(coefficient - exact) <= 6 * spread / 2048**0.5, powers
    # Of those that vanish only the ones with an even power of v in all look as if they need not.
    assert known == sum((a + b) % 2 or c % 2 for a, b, c in POWERS)


def odd_functions(t):
    """Both shares take part: an odd function of the two together is odd."""
    first, second = t["v"].reshape(2, -1)
    joint = jnp.tanh(first + 0.5 * second)
    return jnp.stack(
        [
            jnp.mean(joint),
            jnp.mean(joint * first),
            jnp.mean(joint * second),
            jnp.mean(joint**2 * second),
            jnp.mean(joint * first * second),
            jnp.mean(joint * first**2 * second),
        ]
    )


def attention(t, heads=2):
    h = jnp.tanh(X @ t["U"])
    q, k, v = (jnp.moveaxis((h @ t[name]).reshape(3, heads, -1), 1, 0) for name in "QKV")
    scores = jax.nn.softmax(jnp.einsum("hid,hjd->hij", q, k) / q.shape[-1], -1)
    out = jnp.moveaxis(jnp.einsum("hij,hjd->hid", scores, v), 0, 1).reshape(3, -1)
    return jnp.concatenate([jnp.mean(jnp.tanh(out) ** 2, 1), jnp.mean(out * (h @ t["V"]), 1)])


@pytest.mark.parametrize("program", [odd_functions, attention])
def test_beside_networks(program):
    """Averages of 24 networks of width 1008, four of their errors and a bias of 1/n."""
    found = np.ravel(tp.limit(program)(sampled()))
    networks = dense(program, DECLARED, 1008, 24)
    error = np.std(networks, axis=0, ddof=1) / len(networks) ** 0.5
    assert np.all(np.abs(np.mean(networks, axis=0) - found) <= 4 * error + 0.02)


def test_scores_of_heads_without_training_are_known_to_vanish():
    """With 1/d the scores of each head are exactly zero: every position looks at all alike."""

    def scores(t):
        h = jnp.tanh(X @ t["U"])
        q, k = ((h @ t[name]).reshape(3, 2, -1) for name in "QK")
        return jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1], -1)

    found = tp.limit(scores)(sampled(2, samples=512))
    np.testing.assert_allclose(found, np.full((2, 3, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize("terms", [1, 2])
def test_fluctuations_of_shares_are_refused(terms):
    run = lambda t: len(t["v"]) ** 0.5 * jnp.mean(t["v"].reshape(2, -1), 1)
    with pytest.raises(tp.CancellationError, match=r"unknown part is of order n\^0"):
        tp.limit(run)(sampled(terms, samples=512))
