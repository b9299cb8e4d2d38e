"""Multilayer perceptrons: shapes, formula, activations, wrong arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tplimit.models import ACTIVATIONS, mlp


def parameters(model, n, key):
    shapes = model.shapes(n)
    keys = jax.random.split(key, len(shapes))
    return {
        k: jax.random.normal(s, shape) for s, (k, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("bias", [False, True, "first"])
def test_apply_is_the_formula(depth, outputs, bias, key):
    model = mlp(depth, inputs=3, outputs=outputs, activation="tanh", bias=bias)
    theta = parameters(model, 5, key)
    x = jax.random.normal(jax.random.fold_in(key, 1), (7, 3))
    h = np.asarray(x, np.float64)
    for l in range(1, depth + 2):
        has_bias = bias is True or (bias == "first" and l == 1)
        assert (f"b{l}" in theta) == has_bias
        h = h @ np.asarray(theta[f"W{l}"], np.float64) + (
            np.asarray(theta[f"b{l}"]) if has_bias else 0
        )
        if l <= depth:
            h = np.tanh(h)
    f = model.apply(theta, x)
    assert f.shape == ((7,) if outputs == 1 else (7, outputs))
    assert f.dtype == jnp.float32
    np.testing.assert_allclose(f, h, rtol=2e-5, atol=2e-5)


def test_shapes():
    assert mlp(2, 3, bias=True).shapes(5) == {
        "W1": (3, 5), "W2": (5, 5), "W3": (5,), "b1": (5,), "b2": (5,), "b3": (),
    }  # fmt: skip
    assert mlp(1, 3, outputs=2, bias=True).shapes(5)["b2"] == (2,)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_elementwise_and_differentiable(name):
    h = jnp.linspace(-2.0, 2.0, 8)
    model = mlp(1, inputs=1, activation=name)
    theta = {"W1": jnp.eye(1, 8) * 0 + h[None], "W2": jnp.ones(8)}
    f = lambda scale: model.apply(theta, jnp.full((1, 1), scale))[0]
    np.testing.assert_allclose(f(1.0), jnp.sum(ACTIVATIONS[name](h)), rtol=1e-5)
    assert np.isfinite(jax.grad(f)(1.0))


def test_gelu_is_exact():
    # The tanh approximation differs by 5e-4 here: two programs with one name must not exist.
    exact = 2.0 * 0.5 * (1 + jax.scipy.special.erf(2.0 / np.sqrt(2)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.array(2.0)), exact, rtol=1e-6)


def test_callable_activation():
    model = mlp(1, inputs=1, activation=lambda h: 3 * h)
    theta = {"W1": jnp.ones((1, 2)), "W2": jnp.ones(2)}
    assert model.apply(theta, jnp.ones((1, 1))).tolist() == [6.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0, "inputs": 2}, "depth has to be a positive integer"),
        ({"depth": True, "inputs": 2}, "depth has to be a positive integer"),
        ({"depth": 1, "inputs": 2.0}, "inputs has to be a positive integer"),
        ({"depth": 1, "inputs": 2, "outputs": 0}, "outputs has to be a positive integer"),
        (
            {"depth": 1, "inputs": 2, "activation": "tan"},
            "unknown activation 'tan': use one of",
        ),
        ({"depth": 1, "inputs": 2, "bias": "last"}, 'bias has to be False, True or "first"'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)
