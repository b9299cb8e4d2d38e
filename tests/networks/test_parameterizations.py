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
)

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


def test_exponents_are_exact():
    p = Parameterization(0, 0, -0.66)
    assert p.exponents("c", 1) == (Fraction(-33, 50),) * 2
    assert p(c=Fraction(1, 1234)).exponents("c", 1)[0] == Fraction(1, 1234)
    with pytest.raises(tp.WidthError, match=r"0.6180339.* is not a rational number"):
        p(c=0.6180339887).exponents("c", 1)


def test_base_learning_rates_per_layer(key):
    model = tp.mlp(3, inputs=3, bias="first")
    theta = tp.sample(mup.theta(model), key, width=8)
    step = lambda lr: mup.step(model, "mse", lr)(theta, (X, Y))[0]
    one, each = step(1.0), step((0.5, 2.0, 0.25))
    for name, rate in {"W1": 0.5, "b1": 0.5, "W2": 2.0, "W3": 2.0, "W4": 0.25}.items():
        expected = theta[name] + rate * (one[name] - theta[name])
        np.testing.assert_allclose(each[name], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="mup has 2 learning rates, but a network of depth 3"):
        step((0.5, 2.0))


def test_base_learning_rates_of_the_first_step(key):
    model, p = tp.mlp(1, inputs=3), mean_field(first=(0, 0))
    theta = tp.sample(p.theta(model), key, width=8)
    step = p.step(model, "mse", 0.1, first_lr=(0.3, 0.7))
    one, _ = jax.jit(step)(theta, (X, Y))
    for name, rate in {"W1": 0.3, "W2": 0.7}.items():
        expected = p.step(model, "mse", rate)(theta, (X, Y))[0][name]
        np.testing.assert_allclose(one[name], expected, rtol=1e-5)
    two, _ = step(one, (X, Y))
    np.testing.assert_array_equal(two["W2"], p.step(model, "mse", 0.1)(one, (X, Y))[0]["W2"])


def test_initial_means_and_standard_deviations(key):
    p = mup(std=(2.0, 0.5, 0.0), mean=(0.0, 3.0, 1.5))
    theta = tp.sample(p.theta(tp.mlp(3, inputs=3, bias=True)), key, width=300)
    for name, (mean, std) in {"W1": (0, 2), "W2": (3, 0.5), "W3": (3, 0.5)}.items():
        count = theta[name].size
        assert abs(float(jnp.mean(theta[name])) - mean) < 5 * std / count**0.5, name
        assert abs(float(jnp.std(theta[name])) / std - 1) < 5 / (2 * count) ** 0.5, name
    np.testing.assert_array_equal(theta["W4"], np.full(300, 1.5, np.float32))
    assert abs(float(jnp.mean(theta["b2"]))) < 0.3
    # In units of n^-b, relative to the reference width.
    scaled = Parameterization(0, 0.5, 0, std=2.0, mean=1.0, reference=100.0)
    theta = tp.sample(scaled.theta(tp.mlp(2, inputs=3)), key, width=400)
    assert abs(float(jnp.mean(theta["W2"])) - 0.5) < 0.02
    assert abs(float(jnp.std(theta["W2"])) - 1.0) < 0.02


def test_initial_weights_that_shrink_with_an_optimizer(key):
    """The update of the optimizer is kept whole, in the first step only."""
    model, optimizer = tp.mlp(2, inputs=3), optax.sgd(1.0, momentum=0.9)
    p = mup(shrink=(0, 1, 0))
    theta = tp.sample(p.theta(model), key, width=4)
    one, _ = p.step(model, "mse", 0.5, optimizer)(theta, (X, Y))
    same, _ = mup.step(model, "mse", 0.5, optimizer)(theta, (X, Y))
    np.testing.assert_allclose(one["W2"], same["W2"] - 0.75 * theta["W2"], rtol=1e-5, atol=1e-6)
    two, _ = p.step(model, "mse", 0.5, optimizer)(one, (X, Y))
    expected, _ = mup.step(model, "mse", 0.5, optimizer)(one, (X, Y))
    np.testing.assert_array_equal(two["W2"], expected["W2"])


def test_effective_parameters_are_what_the_network_sees(key):
    model = tp.mlp(2, inputs=3, outputs=2, bias=True)
    for p in (mup, ntk(reference=16.0), naive_ip(biases=Parameterization(0, 0, 0))):
        theta = tp.sample(p.theta(model), key, width=12)
        expected = model.apply(p.effective(model, theta), X)
        np.testing.assert_array_equal(p.predict(model)(theta, X), expected)
