"""Kernels by particles, with many replicates, against exact kernels and finite networks.

All entries together by their largest |z| over replicates: a false alarm in 10^3 runs of a matrix,
by Student's t and Bonferroni, which for 10 entries and 32 replicates are 4.5 standard errors. Keys
are fixed, so that a test that passes goes on passing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_kernel_programs import (
    ACTIVATIONS,
    RECURRENT,
    N,
    X,
    finite,
    perceptron,
    recurrent,
)

import tplimit as tp
from tplimit import kernels


def assert_within_errors(found, expected, replicates):
    """And errors that mean something: at most 2 % of the largest entry."""
    rows, columns = np.triu_indices(len(expected))
    z = ((found.value - expected) / found.stderr)[rows, columns]
    limit = stats.t.isf(1e-3 / 2 / z.size, replicates - 1)
    assert np.abs(z).max() < limit, (np.abs(z).max(), limit)
    assert found.stderr.max() < 0.02 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["relu", "erf", "gelu", "tanh"])
def test_particles_of_perceptrons(name, depth):
    """32 replicates of 1024 particles: what would show is a bias of some 0.3 %."""
    apply, theta = perceptron(depth, ACTIVATIONS[name])
    x = jnp.asarray(X, jnp.float32)
    exact = kernels.mlp(depth, name, 1.3, 0.4)(x)
    for which, expected in ((tp.nngp, exact.nngp), (tp.ntk, exact.ntk)):
        found = which(apply, theta, x, method="particles", samples=2**10, replicates=32)
        assert_within_errors(found, np.asarray(expected), 32)


# 7 and 9 tokens (the sentences of GP4A) ---------------------------------------------------------

VOCABULARY = np.random.default_rng(9).normal(size=(12, 3))
#: Words of both sentences are shared, and one is repeated.
SENTENCES = np.array([[0, 1, 2, 3, 1, 4, 5, 0, 0], [6, 1, 7, 8, 3, 9, 10, 2, 11]])
LENGTHS = np.array([7, 9])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["nngp", "ntk"])
def test_sentences_of_seven_and_nine_tokens(which):
    """Tied weights, unequal lengths: the program against the recursion over pairs of times."""
    x = jnp.asarray(VOCABULARY[SENTENCES], jnp.float32), jnp.asarray(LENGTHS)
    network = kernels.rnn("erf", w_std=1.2, u_std=1.0, b_std=0.3)
    exact = np.asarray(getattr(network(x[0], lengths1=LENGTHS), which))
    found = getattr(tp, which)(recurrent, RECURRENT, x, samples=2**12, replicates=16)
    assert found.method == "particles"
    assert_within_errors(found, exact, 16)
    # The published notebook stops both sentences after 7 tokens: a kernel far from this one.
    cut = getattr(network(x[0], lengths1=np.array([7, 7])), which)
    assert (np.abs(cut - exact) / found.stderr).max() > 20


# A transformer of two blocks ---------------------------------------------------------------------


def layer_norm(h):
    h = h - h.mean(axis=-1, keepdims=True)
    return h / jnp.sqrt((h * h).mean(axis=-1, keepdims=True))


def transformer(theta, x):
    """Blocks of attention with scores over the width and a perceptron, each behind a layer norm."""
    h = x @ theta["U"] / x.shape[-1] ** 0.5
    n = h.shape[-1]
    for block in theta["blocks"]:
        normal = layer_norm(h)
        q, k, v = (normal @ block[name] / n**0.5 for name in "QKV")
        weights = jax.nn.softmax(jnp.einsum("pin,pjn->pij", q, k) / n, axis=-1)
        h = h + jnp.einsum("pij,pjn->pin", weights, v)
        h = h + jax.nn.relu(layer_norm(h) @ block["A"] / n**0.5) @ block["B"] / n**0.5
    return layer_norm(h).mean(axis=1) @ theta["v"] / n**0.5


TRANSFORMER = {
    "U": tp.normal((3, N)), "v": tp.normal((N,)),
    "blocks": [{name: tp.normal((N, N)) for name in "QKVAB"} for _ in range(2)],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("which", ["nngp", "ntk"])
def test_transformers_converge_to_the_limit(which):
    """RMS distance of 64 networks at each width; its logarithm is known to 10 %, the slope to 0.06.

    Two sequences of three tokens. At the largest width the mean agrees in 5 standard errors beside
    a bias of order 1/n.
    """
    x = jnp.asarray(np.random.default_rng(8).normal(size=(2, 3, 3)), jnp.float32)
    limit = getattr(tp, which)(transformer, TRANSFORMER, x, samples=2**9, replicates=4)
    widths, size = [32, 64, 128, 256], np.abs(limit.value).max()
    runs = [finite(transformer, TRANSFORMER, x, which, n, 64) for n in widths]
    distances = [np.sqrt(np.mean((run - limit.value) ** 2)) for run in runs]
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert abs(slope + 0.5) < 0.15, (slope, distances)
    error = np.hypot(runs[-1].std(axis=0, ddof=1) / 8, limit.stderr)
    assert np.all(np.abs(runs[-1].mean(axis=0) - limit.value) < 5 * error + 2 * size / widths[-1])
