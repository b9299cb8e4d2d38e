"""Attention of the libraries as they have it, logits divided by the root of d, beside networks.

The limit is random, another one for every draw: means and second moments over draws are compared
with those over networks. With 5 standard errors and 12 numbers that fails by chance for one in
10^5 choices of keys.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.helpers import fast_compilation

import tplimit as tp

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 4, 3))
MASK = jnp.tril(jnp.ones((4, 4), bool))


class Linen(nn.Module):
    """Blocks of causal attention, and an output with a readout of the usual scale if asked for."""

    width: int
    blocks: int = 1
    readout: bool = False
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width)(x)
        for _ in range(self.blocks):
            h = h + nn.MultiHeadDotProductAttention(num_heads=self.heads)(h, mask=MASK)
        return nn.Dense(1, use_bias=False)(h)[:, -1, 0] if self.readout else h


def linen(**options):
    def apply(params):
        n = params["params"]["Dense_0"]["bias"].shape[0]
        return Linen(n, **options).apply(params, X)

    return lambda n: Linen(n, **options).init(KEY, X), apply


class Nnx(nnx.Module):
    def __init__(self, n):
        self.dense = nnx.Linear(3, n, rngs=nnx.Rngs(0))
        self.attention = nnx.MultiHeadAttention(4, n, decode=False, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.attention(self.dense(x))


def of_nnx():
    def apply(params):
        n = params["dense"]["bias"][...].shape[0]
        graph, _, rest = nnx.split(nnx.eval_shape(lambda: Nnx(n)), nnx.Param, ...)
        return nnx.merge(graph, params, rest)(X)

    return lambda n: nnx.state(Nnx(n), nnx.Param), apply


def equinox():
    net = lambda n: (
        eqx.nn.Linear(3, n, key=KEY),
        eqx.nn.MultiheadAttention(4, n, key=jax.random.key(1)),
    )

    def apply(leaves):
        arrays, static = eqx.partition(net(leaves[0].shape[0]), eqx.is_array)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), leaves)
        dense, attention = eqx.combine(arrays, static)

        def one(x):
            h = jax.vmap(dense)(x)
            return attention(h, h, h, mask=MASK)

        return jax.vmap(one)(X)

    return lambda n: jax.tree.leaves(eqx.filter(net(n), eqx.is_array)), apply


def haiku():
    def net(n):
        def call(x):
            h = hk.Linear(n)(x)
            init = hk.initializers.VarianceScaling()
            return hk.MultiHeadAttention(4, n // 4, w_init=init)(h, h, h)

        return hk.without_apply_rng(hk.transform(call))

    apply = lambda params: net(params["linear"]["b"].shape[0]).apply(params, X)
    return lambda n: net(n).init(KEY, X), apply


def moments(rows):
    return np.concatenate([rows, rows**2], 1)


def assert_same_law(found, networks):
    """Means and second moments."""
    a, b = moments(found), moments(networks)
    error = np.hypot(a.std(0) / len(a) ** 0.5, b.std(0) / len(b) ** 0.5)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) <= 5 * error + 1e-6)


def assert_as_networks(make, statistic, draws=80, width=256):
    """Statistics of draws of the limit, and of 200 networks."""
    declared, limited = tp.declare(make), tp.limit(statistic)
    drawn = lambda k: tp.sample(declared, jax.random.key(k), width=tp.inf, samples=2**10, terms=2)
    with fast_compilation():
        found = np.stack([np.ravel(limited(drawn(k))) for k in range(draws)])
        one = jax.jit(lambda k: statistic(tp.sample(declared, k, width=width)))
        keys = jax.random.split(jax.random.key(7), 200)
        networks = np.stack([np.ravel(one(k)) for k in keys])
    assert_same_law(found, networks)


MODULES = {
    "linen, causal, 2 heads": linen(), "nnx": of_nnx(), "equinox, causal": equinox(),
    "haiku": haiku(),
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_features(module):
    make, apply = module

    def statistic(params):
        y = apply(params)
        gram = jnp.einsum("btn,bsn->bts", y, y) / y.shape[-1]
        return jnp.stack([gram[:, 0, 0], gram[:, 3, 3], gram[:, 0, 3]])

    assert_as_networks(make, statistic)


@pytest.mark.parametrize("blocks", [1, 2])
def test_outputs_of_the_usual_scale(blocks):
    """What is unknown of the features is of order n^(-1/2), but odd: the output is known. So are
    the logits of a second block."""
    make, apply = linen(blocks=blocks, readout=True)

    def statistic(params):
        f = apply(params)
        return jnp.stack([*f, f[0] * f[1]])

    assert_as_networks(make, statistic)


def trained(below, between):
    """A step of gradient descent in muP, but for these powers of n as rates of what is below the
    attention and of the kernels of queries and keys."""
    make, apply = linen(readout=True)

    def width(params):
        return params["params"]["Dense_0"]["bias"].shape[0]

    def predict(params):
        return apply(params) / width(params) ** 0.5

    def step(params, _):
        n = width(params)

        def rate(path, leaf):
            place = jax.tree_util.keystr(path)
            if "Dense_0" in place:
                return n**below
            if "query" in place or "key'" in place:
                return n**between * (n if "bias" in place else 1)
            return n if "bias" in place else 1

        loss = lambda p: jnp.mean((predict(p) - jnp.array([1.0, -1.0])) ** 2)
        value, grads = jax.value_and_grad(loss)(params)
        moves = jax.tree_util.tree_map_with_path(lambda p, g: 0.2 * rate(p, g) * g, grads)
        return jax.tree.map(jnp.subtract, params, moves), value

    return make, step, predict


def test_training():
    """Two steps in which the logits stay of order 1."""
    make, step, predict = trained(0, -1)
    with fast_compilation():
        limit, networks = (
            tp.train(step, make, [None] * 2, observe=predict, **how)
            for how in (
                {"width": tp.inf, "samples": 2**10, "replicates": 32, "key": KEY, "terms": 2},
                {"width": 256, "replicates": 100, "key": jax.random.key(3)},
            )
        )
    rows = [np.asarray(run.replicates.observations)[:, 1:] for run in (limit, networks)]
    assert_same_law(*(row.reshape(len(row), -1) for row in rows))


def test_logits_that_training_aligns_are_refused():
    """With the rates of muP queries and keys align by the second step."""
    make, step, _ = trained(1, 0)
    theta = tp.sample(make, KEY, width=tp.inf, samples=2**8, terms=2)
    with fast_compilation():
        theta, _ = tp.limit(step)(theta, None)
        with pytest.raises(tp.CancellationError, match=r"grows? like n\^1/2") as caught:
            tp.limit(step)(theta, None)
    assert "divide by d" in caught.value.advice
    assert "test_attention.py" in str(caught.value)
