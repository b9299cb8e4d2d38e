"""Multilayer perceptrons: shapes, formula, activations, wrong arguments."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tplimit.networks.activations import orders
from tplimit.networks.models import ACTIVATIONS, mlp


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
        ({"depth": 1, "inputs": 2, "degree": 0}, "the degree of an activation is positive"),
        ({"depth": 1, "inputs": 2, "bias": "last"}, 'bias has to be False, True or "first"'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)


# The degree of an activation ----------------------------------------------------------------------

# Those that are not 0 at 0, and the power of the derivative.
NONZERO_AT_0 = {"cos": 1, "exp": 0, "gaussian": 1, "hard_sigmoid": 0, "sigmoid": 0, "softplus": 0}
DEGREE_2 = {"relu2", "square"}
HOMOGENEOUS = {"abs", "identity", "leaky_relu", "relu", *DEGREE_2}
ODD = {"erf", "hard_tanh", "identity", "sin", "softsign", "tanh"}
JUMPS = {"sign", "step"}


@pytest.mark.parametrize("name", sorted(JUMPS))
def test_a_jump_at_0_is_no_power(name):
    with pytest.raises(ValueError, match="behaves like no power"):
        orders(name)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - JUMPS))
def test_leading_powers_of_known_activations(name):
    found = orders(name)
    degree = 0 if name in NONZERO_AT_0 else 2 if name in DEGREE_2 else 1
    assert found.value == degree
    assert found.slope == NONZERO_AT_0.get(name, degree - 1)
    assert found.homogeneous == (name in HOMOGENEOUS)
    assert found.odd == (name in ODD)


def test_leading_powers_of_functions():
    for p in (1, 2, 3, 4):
        power = mlp(2, inputs=3, activation=lambda h, p=p: 0.3 * jnp.maximum(h, 0) ** p)
        assert power.homogeneity == p
        assert power.orders.homogeneous
    assert mlp(2, inputs=3, activation=lambda h: jnp.maximum(h, 0) ** 1.5).homogeneity == 1.5
    tanh_squared = mlp(2, inputs=3, activation=lambda h: jnp.tanh(h) ** 2)
    assert tanh_squared.homogeneity == 2
    assert not tanh_squared.orders.homogeneous
    centred = mlp(2, inputs=3, activation=lambda h: jax.nn.softplus(h) - jnp.log(2.0))
    assert centred.homogeneity == 1


def test_a_degree_may_be_given():
    flat = mlp(2, inputs=3, activation=lambda h: jnp.exp(-1 / h**2), degree=Fraction(3, 2))
    assert flat.homogeneity == flat.orders.value == Fraction(3, 2)
    assert mlp(2, inputs=3, activation="sigmoid", degree=1).homogeneity == 1
    assert mlp(2, inputs=3, activation="sigmoid", degree=1).orders.value == 0
    with pytest.raises(ValueError, match="like no power of its argument: give its degree"):
        _ = mlp(2, inputs=3, activation=lambda h: jnp.exp(-1 / h**2)).homogeneity
    with pytest.raises(ValueError, match=r"no power"):  # a jump at 0
        _ = mlp(2, inputs=3, activation=jnp.sign).homogeneity
    with pytest.raises(ValueError, match=r"φ\(0\) is not 0.*mlp\(..., degree=1\)"):
        _ = mlp(2, inputs=3, activation="sigmoid").homogeneity


def test_the_degree_is_found_where_jax_is_tracing():
    def degree(x, scale):
        model = mlp(2, inputs=3, activation=lambda h: scale * ACTIVATIONS["relu2"](h))
        return x * float(model.homogeneity)

    # Each function is new, so that nothing known beforehand is used.
    for k, (transform, x) in enumerate(
        [(jax.jit, jnp.ones(1)), (jax.vmap, jnp.ones(1)), (jax.grad, jnp.array(1.0))]
    ):
        outcome = transform(lambda x, k=k: degree(x, k + 1.0))(x)
        np.testing.assert_allclose(outcome, 2.0 * jnp.ones_like(x))
