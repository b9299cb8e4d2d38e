"""Exponents, plain JAX steps against gradient descent written out, losses, optimizers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp
from tplimit.parameterizations import (
    Parameterization,
    cross_entropy,
    logistic,
    mean_field,
    mse,
    mup,
    naive_ip,
    ntk,
    standard,
)  # fmt: skip

HALF = Fraction(1, 2)
X = np.array([[0.5, -1.0, 2.0], [1.0, 0.3, -0.7]], np.float32)
Y = np.array([1.0, -1.0], np.float32)


@pytest.mark.parametrize(
    ("parameterization", "depth", "a", "b", "c"),
    [
        (mup, 3, (0, HALF, HALF, 1), (0,) * 4, (-1,) * 4),
        (mup, 1, (0, 1), (0, 0), (-1, -1)),
        (naive_ip, 3, (0, 1, 1, 1), (0,) * 4, (-1, -2, -2, -1)),
        (mean_field, 1, (0, 1), (0, 0), (-1, -1)),
        (ntk, 2, (0, HALF, HALF), (0,) * 3, (0,) * 3),
        (standard, 2, (0, 0, 0), (0, HALF, HALF), (0,) * 3),
    ],
)
def test_published_exponents(parameterization, depth, a, b, c):
    assert parameterization.exponents("a", depth) == a
    assert parameterization.exponents("b", depth) == b
    assert parameterization.exponents("c", depth) == c
    assert parameterization.exponents("first", depth) == c


def test_effective_update_exponents():
    # 2a + c decides the size of updates of effective weights: (-1, 0, 1) in muP and naive IP.
    for p in (mup, naive_ip):
        a, c = p.exponents("a", 2), p.exponents("c", 2)
        assert [2 * i + j for i, j in zip(a, c, strict=True)] == [-1, 0, 1]


def test_exponents_may_be_sequences_or_functions():
    p = Parameterization([0, 1, 2, 3], 0.5, lambda model: [-model.depth] * model.layers)
    assert p.exponents("a", 3) == (0, 1, 2, 3)
    assert p.exponents("b", 3) == (HALF,) * 4
    assert p.exponents("c", 3) == (-3,) * 4
    with pytest.raises(ValueError, match="has 4 exponents a, but a network of depth 2"):
        p.exponents("a", 2)
    assert mup(input_scale=2.0).input_scale == 2.0
    assert mup.input_scale is None


@pytest.mark.parametrize("parameterization", [mup, naive_ip, ntk, standard], ids=lambda p: p.name)
def test_step_is_gradient_descent_with_its_exponents(parameterization, key):
    """Against derivatives of the scaled network, written out by hand."""
    model, lr, n = tp.mlp(2, inputs=3, bias=True), 0.3, 16
    theta = tp.sample(parameterization.theta(model), key, width=n)
    a, c = parameterization.exponents("a", 2), parameterization.exponents("c", 2)
    m = [float(n) ** -float(e) for e in a]
    w1, w2, w3 = (np.asarray(theta[f"W{l}"], np.float64) * m[l - 1] for l in (1, 2, 3))
    b1, b2, b3 = (np.asarray(theta[f"b{l}"], np.float64) * m[l - 1] for l in (1, 2, 3))
    scale = 3**-0.5
    x1 = np.tanh(X @ w1 * scale + b1)
    x2 = np.tanh(x1 @ w2 + b2)
    f = x2 @ w3 + b3
    chi = (f - Y) / 2
    d2 = chi[:, None] * w3 * (1 - x2**2)
    d1 = d2 @ w2.T * (1 - x1**2)
    gradients = {
        "W1": X.T @ d1 * scale * m[0], "b1": d1.sum(0) * m[0],
        "W2": x1.T @ d2 * m[1], "b2": d2.sum(0) * m[1],
        "W3": x2.T @ chi * m[2], "b3": chi.sum() * m[2],
    }  # fmt: skip
    np.testing.assert_allclose(parameterization.predict(model)(theta, X), f, rtol=1e-4, atol=1e-5)
    new, loss = jax.jit(parameterization.step(model, "mse", lr))(theta, (X, Y))
    np.testing.assert_allclose(loss, 0.25 * np.sum((f - Y) ** 2), rtol=1e-4)
    assert new.keys() == theta.keys()
    for name, gradient in gradients.items():
        rate = lr * float(n) ** -float(c[int(name[1]) - 1])
        expected = np.asarray(theta[name], np.float64) - rate * gradient
        np.testing.assert_allclose(new[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_initial_scales(key):
    theta = tp.sample(standard(bias_std=0.0).theta(tp.mlp(2, 3, bias=True)), key, width=400)
    for name, std in {"W1": 1.0, "W2": 0.05, "W3": 0.05}.items():
        count = theta[name].size
        assert abs(float(jnp.std(theta[name])) / std - 1) < 5 / np.sqrt(2 * count), name
    assert not any(jnp.any(theta[f"b{l}"]) for l in (1, 2, 3))


def test_own_exponents_of_the_first_step(key):
    model = tp.mlp(1, inputs=3)
    own = mean_field(first=(0, 0))
    step, reference = own.step(model, "mse", 0.1), mean_field.step(model, "mse", 0.1)
    slow = mean_field(c=(0, 0)).step(model, "mse", 0.1)
    start = tp.sample(own.theta(model), key, width=8)
    plain = {k: start[k] for k in ("W1", "W2")}
    one, _ = jax.jit(step)(start, (X, Y))
    np.testing.assert_allclose(one["W2"], slow(plain, (X, Y))[0]["W2"], rtol=1e-6)
    two, _ = jax.jit(step)(one, (X, Y))
    np.testing.assert_allclose(two["W2"], reference(one, (X, Y))[0]["W2"], rtol=1e-6)


def test_biases_may_have_their_own_exponents(key):
    p = naive_ip(biases=Parameterization(0, 0, (-1, -1, 0)))
    model = tp.mlp(2, inputs=3, bias=True)
    theta = tp.sample(p.theta(model), key, width=10)
    shifted = theta | {"b3": theta["b3"] + 1.0}
    difference = p.predict(model)(shifted, X) - p.predict(model)(theta, X)
    np.testing.assert_allclose(difference, 1.0, rtol=1e-5)  # the multiplier of b3 is n^0
    new, _ = jax.jit(p.step(model, "mse", 1.0))(theta, (X, Y))
    chi = np.sum(p.predict(model)(theta, X) - Y) / 2
    np.testing.assert_allclose(theta["b3"] - new["b3"], chi, rtol=1e-5)


def test_optimizer_scales_its_updates(key):
    model = tp.mlp(2, inputs=3)
    theta = tp.sample(mup.theta(model), key, width=8)
    plain, momentum = (mup.step(model, "mse", 0.2, o) for o in (None, optax.sgd(1.0, momentum=0.9)))
    state, reference, velocity = theta, theta, jax.tree.map(jnp.zeros_like, theta)
    for _ in range(3):
        after, _ = plain(reference, (X, Y))
        move = jax.tree.map(jnp.subtract, after, reference)
        velocity = (
            move if velocity is None else jax.tree.map(lambda v, m: 0.9 * v + m, velocity, move)
        )
        reference = jax.tree.map(jnp.add, reference, velocity)
        state, _ = momentum(state, (X, Y))
        for name in theta:
            np.testing.assert_allclose(state[name], reference[name], rtol=1e-4, atol=1e-5)
    assert mup.predict(model)(state, X).shape == (2,)


def test_float64(key):
    with jax.enable_x64(True):
        model = tp.mlp(2, inputs=3)
        theta = jax.tree.map(
            lambda s: jnp.ones(s, jnp.float64), model.shapes(4), is_leaf=lambda s: type(s) is tuple
        )
        new, loss = mup.step(model, "mse", 0.1)(theta, (X.astype(float), Y.astype(float)))
        assert {leaf.dtype for leaf in jax.tree.leaves((new, loss))} == {jnp.dtype("float64")}


def test_losses():
    f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
    np.testing.assert_allclose(mse(f, y), (0.25 + 1.0) / 4)
    np.testing.assert_allclose(logistic(f, y), np.mean(np.log1p(np.exp([-0.5, -2.0]))), rtol=1e-6)
    logits, labels = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), jnp.array([1, 0])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(
        cross_entropy(logits, jax.nn.one_hot(labels, 3)), expected, rtol=1e-6
    )


def test_wrong_arguments():
    model = tp.mlp(1, inputs=3)
    with pytest.raises(ValueError, match="unknown loss 'l2': use one of mse, logistic"):
        mup.step(model, "l2", 0.1)
    with pytest.raises(ValueError, match=r"of shape \(2,\) against labels of shape \(2, 1\)"):
        mse(jnp.zeros(2), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match="mean has 2 exponents a"):
        Parameterization((0, 1), 0, 0, name="mean").theta(tp.mlp(2, inputs=3))
