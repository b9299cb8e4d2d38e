"""Kernels of networks: against neural-tangents, their definitions, and bad input."""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from oracles import duals as oracle

import tplimit as tp
from tplimit.kernels import (
    activation,
    add,
    bias,
    dense,
    from_neural_tangents,
    import_neural_tangents,
    layer_norm,
    mlp,
    multiply,
    network,
    repeat,
    residual,
)

rng = np.random.default_rng(5)
X, Y = rng.normal(size=(6, 4)), rng.normal(size=(5, 4))


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def stax() -> ModuleType:
    return import_neural_tangents().stax


#: Our name, theirs, their arguments.
SHARED = [
    ("abs", "Abs", ()),
    ("cos", "Cos", ()),
    ("erf", "Erf", ()),
    ("gaussian", "Gaussian", ()),
    ("gelu", "Gelu", ()),
    ("identity", "Identity", ()),
    ("leaky_relu", "LeakyRelu", (0.01,)),
    ("relu", "Relu", ()),
    ("relu2", "RectifiedMonomial", (2,)),
    ("sign", "Sign", ()),
    ("sin", "Sin", ()),
    ("square", "Monomial", (2,)),
    ("step", "RectifiedMonomial", (0,)),
]


def theirs(stax: ModuleType, phi: Any, depth: int, w: float, b: float) -> Any:
    layers = [layer for _ in range(depth) for layer in (stax.Dense(1, w, b), phi)]
    return stax.serial(*layers, stax.Dense(1, w, b))[2]


def off_diagonal(found: Any, expected: Any, tolerance: float) -> None:
    for name in ("nngp", "ntk"):
        assert_allclose(getattr(found, name), getattr(expected, name), tolerance, err_msg=name)


@pytest.mark.parametrize("b_std", [0.0, 0.3])
@pytest.mark.parametrize(("ours", "their", "arguments"), SHARED, ids=[s[0] for s in SHARED])
def test_agrees_with_neural_tangents(
    stax: ModuleType, ours: str, their: str, arguments: tuple[float, ...], b_std: float
) -> None:
    """In float64, between different points (see below for their diagonal)."""
    w_std = 0.7 if ours == "square" else 1.3
    # In deeper networks their powers of relu are NaN.
    for depth in (1,) if their == "RectifiedMonomial" else (1, 3, 10):
        if ours == "sign" and depth > 5:
            continue  # its correlations shrink to round-off, where relative errors mean nothing
        expected = theirs(stax, getattr(stax, their)(*arguments), depth, w_std, b_std)(X, Y)
        off_diagonal(mlp(depth, ours, w_std, b_std)(X, Y), expected, 1e-10)


@pytest.mark.filterwarnings("ignore:Numerical Activation", "ignore:Using JAX autodiff")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "tanh"])
@pytest.mark.parametrize("b_std", [0.0, 0.3])
def test_agrees_with_their_quadrature(stax: ModuleType, name: str, b_std: float) -> None:
    """Of smooth functions, with as many nodes as they need for 1e-10."""
    phi = stax.ElementwiseNumerical(tp.kernels.dual(name).function, deg=160)
    for depth in (1, 3, 10):
        expected = theirs(stax, phi, depth, 1.0, b_std)(X, Y)
        off_diagonal(mlp(depth, name, 1.0, b_std)(X, Y), expected, 1e-10)


def test_polynomials_agree(stax: ModuleType) -> None:
    coefficients = [0.1, 0.7, -0.2, 0.3]
    phi = tp.kernels.polynomial(coefficients)
    expected = theirs(stax, stax.Polynomial(coefficients), 2, 0.8, 0.1)(X, Y)
    off_diagonal(mlp(2, phi, 0.8, 0.1)(X, Y), expected, 1e-10)


# Where neural-tangents is wrong -----------------------------------------------------------------


def test_diagonal_of_relu(stax: ModuleType) -> None:
    """K and Θ of a point with itself are known: w²/2 each layer. Rounding takes a correlation of 1
    to 1 - ε, where the angle is √(2 ε): they lose half of the digits, we do not."""
    depth, w, b = 5, 1.3, 0.2
    points = rng.normal(size=(100, 50))
    k = np.sum(points * points, 1) / 50
    theta = k = w**2 * k + b**2
    for _ in range(depth):
        k, theta = w**2 * k / 2 + b**2, w**2 * (k / 2 + theta / 2) + b**2
    for x64, ours, their in ((True, 1e-14, 1e-10), (False, 2e-6, 1e-5)):
        with jax.enable_x64(x64):
            found = mlp(depth, "relu", w, b)(points)
            assert_allclose(np.diag(found.nngp), k, ours)
            assert_allclose(np.diag(found.ntk), theta, ours)
            wrong = theirs(stax, stax.Relu(), depth, w, b)(points, None, "ntk")
            assert np.max(np.abs(np.diag(wrong) / theta - 1)) > their


def test_diagonal_of_jumps(stax: ModuleType) -> None:
    """sign² = 1 at every depth; theirs is off by a percent in double precision."""
    assert_array_equal(np.diag(mlp(3, "sign")(X).nngp), 1)
    wrong = theirs(stax, stax.Sign(), 3, 1.0, 0.0)(X, None, "nngp")
    assert np.abs(np.diag(wrong) - 1).max() > 1e-4


def test_powers_of_relu_on_the_diagonal(stax: ModuleType) -> None:
    assert np.isnan(theirs(stax, stax.RectifiedMonomial(2), 1, 1.0, 0.0)(X, None, "nngp")).any()
    k = np.sum(X * X, 1) / X.shape[1]
    assert_allclose(np.diag(mlp(1, "relu2")(X).nngp), 1.5 * k**2, 1e-14)


@pytest.mark.filterwarnings("ignore:Numerical Activation", "ignore:Using JAX autodiff")
@pytest.mark.slow
def test_their_quadrature_ignores_kinks(stax: ModuleType) -> None:
    x = np.array([[1.0, 0.2]]), np.array([[0.8, 0.9]])
    var1, var2, cov = (np.sum(a * b) / 2 for a, b in ((x[0],) * 2, (x[1],) * 2, x))
    truth = oracle.expectation("hard_tanh", cov, var1, var2)
    phi = stax.ElementwiseNumerical(jax.nn.hard_tanh, deg=25)
    wrong = theirs(stax, phi, 1, 1.0, 0.0)(*x, "nngp")
    assert_allclose(mlp(1, "hard_tanh")(*x).nngp[0, 0], truth, 1e-7)
    assert abs(wrong[0, 0] / truth - 1) > 1e-4


# The bridge -------------------------------------------------------------------------------------


def test_the_bridge_leaves_no_trace(stax: ModuleType) -> None:
    assert stax is import_neural_tangents().stax
    for name in ("Jaxpr", "Primitive", "jaxpr_as_fun"):
        assert name not in vars(sys.modules["jax.core"])
    assert "zeros_like_p" not in vars(sys.modules["jax.interpreters.ad"])
    assert "jax.util" not in sys.modules
    assert "neural_tangents.experimental" not in sys.modules
    assert "tensorflow" not in sys.modules


def test_importing_tplimit_does_not_import_it() -> None:
    script = "import sys, tplimit; assert 'neural_tangents' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_absence_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "neural_tangents", None)  # import fails
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents frozendict"):
        import_neural_tangents()
    assert "jax.util" not in sys.modules


@pytest.mark.slow
def test_convolutions_come_through_the_bridge(stax: ModuleType) -> None:
    image = rng.normal(size=(3, 4, 4, 2))
    layers = stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), stax.GlobalAvgPool()
    kernel_fn = stax.serial(*layers, stax.Dense(1))[2]
    found = from_neural_tangents(kernel_fn)(image, image[:2])
    assert_allclose(found.ntk, kernel_fn(image, image[:2], "ntk"))
    assert (found.nngp.shape, found.var1.shape, found.var2.shape) == ((3, 2), (3,), (2,))
    assert_allclose(found.var2, np.diag(from_neural_tangents(kernel_fn)(image[:2]).nngp), 1e-7)
    with pytest.raises(TypeError, match=r"the third of what stax\.serial"):
        from_neural_tangents(stax.serial(*layers))
    with pytest.raises(ValueError, match="without NaN"):
        from_neural_tangents(kernel_fn)(image * np.nan)


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
    with pytest.raises(ValueError, match="must be real"):
        net(X + 1j)
    with pytest.raises(ValueError, match="number of hidden layers"):
        mlp(-1)
    with pytest.raises(tp.ActivationError, match="the kernel is not finite"):
        mlp(4, "exp", 3.0)(X)


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
