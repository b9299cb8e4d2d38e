"""Kernels of networks: the algebra of layers, evaluation, and bad input."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import tplimit as tp
from tplimit.kernels import (
    activation,
    add,
    bias,
    dense,
    from_neural_tangents,
    layer_norm,
    mlp,
    multiply,
    network,
    repeat,
    residual,
)

rng = np.random.default_rng(5)
X, Y = rng.normal(size=(6, 4)), rng.normal(size=(5, 4))


pytestmark = pytest.mark.usefixtures("float64")


def off_diagonal(found: Any, expected: Any, tolerance: float) -> None:
    for name in ("nngp", "ntk"):
        assert_allclose(getattr(found, name), getattr(expected, name), tolerance, err_msg=name)


# The algebra ------------------------------------------------------------------------------------


def test_layers_against_their_definitions(stax: ModuleType) -> None:
    """Residual connections, sums, products, normalisation and biases, against neural-tangents."""
    n = stax
    block = n.serial(n.Erf(), n.Dense(1, 0.9, 0.1))
    wired = n.serial(
        n.Dense(1, 1.2, 0.3),
        n.FanOut(2),
        n.parallel(n.Identity(), block),
        n.FanInSum(),
        n.LayerNorm(),
        n.FanOut(2),
        n.parallel(n.Dense(1, 0.8), n.Dense(1, 1.1, 0.2)),
        n.FanInProd(),
        n.Dense(1),
    )[2]
    ours = network(
        dense(1.2, 0.3),
        residual(activation("erf"), dense(0.9, 0.1)),
        layer_norm(),
        multiply(dense(0.8), dense(1.1, 0.2)),
        dense(),
    )
    # Theirs adds 1e-12 to the variance.
    off_diagonal(ours(X, Y), from_neural_tangents(wired)(X, Y), 1e-9)


def test_bias_and_sum() -> None:
    one, two = network(dense(1.5, 0.4))(X), network(dense(1.5), bias(0.4))(X)
    off_diagonal(one, two, 1e-14)
    both = network(add(dense(0.6), dense(0.8)))(X)
    off_diagonal(both, network(dense())(X), 1e-14)


def test_repeat_is_writing_out() -> None:
    block = residual(activation("erf"), dense(0.5))
    off_diagonal(
        network(dense(), repeat(3, block), activation("erf"), dense())(X),
        network(dense(), block, block, block, activation("erf"), dense())(X),
        1e-14,
    )
    hidden = dense(1.1), activation("relu")
    off_diagonal(network(*hidden * 3, dense(1.1))(X), mlp(3, "relu", 1.1)(X), 1e-14)


def test_what_second_moments_do_not_determine_is_refused() -> None:
    relu = activation("relu")
    for layers in ([relu], [dense(), relu, relu], [dense(), relu, layer_norm()]):
        with pytest.raises(tp.UnsupportedOperationError, match="Put a dense layer before it"):
            network(*layers)(X)
    with pytest.raises(tp.UnsupportedOperationError, match="End all branches but one with a dense"):
        network(dense(), add(relu, activation("erf")))(X)
    with pytest.raises(tp.UnsupportedOperationError, match="End all branches but one with a dense"):
        network(dense(), multiply(relu, relu))(X)


# Evaluation -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_blocks_do_not_matter() -> None:
    net = mlp(2, "relu", 1.2, 0.1)
    whole = net(X)
    for block in (1, 4, 5):
        off_diagonal(net(X, block=block), whole, 1e-13)
        off_diagonal(net(X, Y, block=block), net(X, Y), 1e-13)
    assert_array_equal(whole.ntk, whole.ntk.T)
    assert_array_equal(np.diag(whole.nngp), whole.var1)
    off = ~np.eye(len(X), dtype=bool)
    assert_allclose(np.asarray(net(X, X).ntk)[off], np.asarray(whole.ntk)[off], 1e-12)


@pytest.mark.slow
def test_hyperparameters_and_inputs_can_be_differentiated() -> None:
    f = lambda w, x: mlp(2, "relu", w, 0.1)(x).ntk[0, :2].sum()
    h = 1e-6
    slope = jax.grad(f)(1.2, X)
    assert_allclose(slope, (f(1.2 + h, X) - f(1.2 - h, X)) / (2 * h), 1e-7)
    direction = rng.normal(size=X.shape)
    found = jnp.vdot(jax.jit(jax.grad(f, 1))(1.2, X), direction)
    difference = (f(1.2, X + h * direction) - f(1.2, X - h * direction)) / (2 * h)
    assert_allclose(found, difference, 1e-6)


def test_float32_stays_float32() -> None:
    found = mlp(1, "erf")(X.astype(np.float32))
    assert found.ntk.dtype == jnp.float32
    assert mlp(1, "erf")(X).ntk.dtype == jnp.float64


def test_bad_input() -> None:
    net = mlp(1, "relu")
    with pytest.raises(ValueError, match="without NaN"):
        net(X * np.nan)
    with pytest.raises(ValueError, match=r"number of points, features"):
        net(X[0])
    with pytest.raises(ValueError, match="different numbers of features"):
        net(X, Y[:, :2])
    with pytest.raises(ValueError, match="real numbers are expected"):
        net(X + 1j)
    with pytest.raises(ValueError, match="depth=-1 is out of range"):
        mlp(-1)
    with pytest.raises(tp.ActivationError, match="the kernel is not finite"):
        mlp(4, "exp", 3.0)(X)


@pytest.mark.slow
def test_a_point_at_zero() -> None:
    """Without bias the network is 0 there, whatever its parameters."""
    x = np.concatenate([X, np.zeros((1, 4))])
    for name in ("relu", "abs", "leaky_relu", "relu2"):
        found = mlp(3, name)(x)
        assert_array_equal(found.ntk[-1], 0)
        assert_array_equal(found.nngp[-1], 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["relu", "erf", "gelu", "abs"]))
def test_kernels_are_positive_semidefinite(seed: int, name: str) -> None:
    points = np.random.default_rng(seed).normal(size=(6, 4))
    points[3] = points[2] * (1 + 1e-9)
    found = mlp(2, name, 1.4, 0.1)(points)
    for gram in (found.nngp, found.ntk):
        eigenvalues = np.linalg.eigvalsh(np.asarray(gram))
        assert eigenvalues[0] > -1e-7 * eigenvalues[-1]


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_relu_networks_are_homogeneous(scale: float, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(6, 4))
    net = mlp(3, "relu", 1.4)
    found, scaled = net(points), net(scale * points)
    assert_allclose(scaled.ntk, scale**2 * found.ntk, 1e-6, atol=1e-9 * scale**2)


# Points that coincide ----------------------------------------------------------------------------

KINKED = {
    "slopes": lambda u: jnp.where(u > 0, u, 0.1 * u),
    "ramp": lambda u: jnp.clip(u, -0.5, 1.0),
    "shrinkage": lambda u: jnp.sign(u) * jnp.maximum(jnp.abs(u) - 0.3, 0),
    "step and line": lambda u: jnp.where(u > 0.2, u + 1, 0.5 * u),
    "smooth": jnp.tanh,
}


QUICK = ("slopes",)
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINKED]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_points_that_coincide_stay_coincident(name: str, dtype: str) -> None:
    """An angle that is lost to round-off or quadrature shows in the slopes of a kinked function."""
    x = jnp.asarray(rng.normal(size=(3, 300)), dtype)
    block = residual(activation(KINKED[name]), dense(1.4, 0.2))
    net = network(dense(), block, layer_norm(0.1), repeat(3, block), activation("relu"), dense())
    once = net(x)
    twice = net(jnp.concatenate([x, x[::-1]]))
    for kernel in ("nngp", "ntk"):
        diagonal = jnp.diagonal(getattr(once, kernel))
        copies = jnp.diagonal(getattr(net(x, x + 0), kernel))
        assert_array_equal(copies, diagonal)
        assert_array_equal(getattr(twice, kernel)[jnp.arange(3), [5, 4, 3]], diagonal)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [*(pytest.param(d, marks=pytest.mark.slow) for d in (1, 3)), 5])
@pytest.mark.parametrize(
    "slope", [0.1, *(pytest.param(s, marks=pytest.mark.slow) for s in (-1, 0))]
)
def test_kinked_functions_by_quadrature_and_in_closed_form(
    slope: float, depth: int, dtype: str
) -> None:
    """Also of parallel points, which have correlation 1 but not the same variance."""
    x = jnp.asarray(rng.normal(size=(3, 300)), dtype)
    y = jnp.concatenate([x, 2 * x, -x, x + 0.1 * x[::-1]])
    written = mlp(depth, lambda u: jnp.where(u > 0, u, slope * u), 1.3, 0.0)(x, y)
    closed = mlp(depth, tp.kernels.leaky_relu(slope), 1.3, 0.0)(x, y)
    tolerance = 1e-7 if dtype == "float64" else 1e-4
    for kernel in ("nngp", "ntk"):
        a, b = (getattr(found, kernel) for found in (written, closed))
        assert_allclose(a, b, tolerance, tolerance * float(jnp.abs(b).max()))
