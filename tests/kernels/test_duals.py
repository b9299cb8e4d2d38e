"""Dual activations: closed forms, quadrature and mpmath agree; bounds and edges hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from oracles import duals as oracle

import tplimit as tp
from tplimit.kernels.duals.activations import dual, hermite, leaky_relu, polynomial, relu_power
from tplimit.kernels.duals.correlation import angle
from tplimit.kernels.duals.kinks import find
from tplimit.kernels.duals.quadrature import quadrature
from tplimit.networks.activations import ACTIVATIONS

CLOSED = [name for name in ACTIVATIONS if dual(name).closed_form]
KINKED = {"abs", "elu", "hard_tanh", "leaky_relu", "relu", "relu2", "sign", "step"}
#: (cov, var1, var2): weak, strong, near 1, negative.
PAIRS = [(0.2, 0.7, 1.6), (1.0, 1.1, 1.3), (0.9999, 1.0, 1.0), (-0.8, 1.2, 0.9)]


pytestmark = pytest.mark.usefixtures("float64")


def tolerance(name: str) -> float:
    return 1e-6 if name in KINKED else 1e-10


# Three ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_on_a_grid(name: str) -> None:
    f = jax.jit(dual(name).function)
    slope = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])
    cuts = oracle.FUNCTIONS[name][2]
    for pair in PAIRS[::2]:
        for g, found in zip((f, slope), dual(name).both(*pair), strict=True):
            assert_allclose(found, oracle.on_a_grid(g, cuts, *pair), 1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["elu", "tanh"])
def test_quadrature_on_a_grid(name: str) -> None:
    f = jax.jit(dual(name).function)
    slope = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])
    pairs = [*PAIRS, (6.0, 7.0, 8.0), (0.001, 0.01, 0.02)]
    value, derivative = dual(name).both(*np.array(pairs).T)
    for g, found in ((f, value), (slope, derivative)):
        expected = [oracle.on_a_grid(g, oracle.FUNCTIONS[name][2], *pair) for pair in pairs]
        assert_allclose(found, expected, tolerance(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu", "hard_tanh", "sigmoid", "tanh"])
def test_quadrature_against_mpmath(name: str) -> None:
    pairs = [*PAIRS, (6.0, 7.0, 8.0), (0.001, 0.01, 0.02), (1.0, 1.0, 1.0)]
    value, derivative = dual(name).both(*np.array(pairs).T)
    for k, pair in enumerate(pairs):
        for order, found in enumerate((value, derivative)):
            expected = oracle.expectation(name, *pair, order=order)
            assert_allclose(found[k], expected, tolerance(name), err_msg=f"{pair}")


@pytest.mark.slow
def test_errors_are_stated() -> None:
    """The estimate exceeds the error, and both are far below what is promised."""
    assert dual("relu").error(0.5, 1.0, 1.0) == (0, 0)
    smooth = dual("tanh").error(0.5, 1.0, 1.0)
    assert max(smooth) < 1e-12
    pair = 0.9999, 1.0, 1.0
    bent = quadrature("relu", lambda x: jnp.maximum(x, 0))
    arguments = [jnp.asarray([a]) for a in pair]
    for order, closed in enumerate(dual("relu").both(*pair)):
        error = abs(bent.expectation(order, *arguments)[0] - closed)
        assert error <= bent.error(order, *arguments)[0] + 1e-15 < 1e-6


def test_arctangent_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(2, 10**4)) * 10 ** rng.uniform(-6, 6, (2, 10**4))
    assert_allclose(angle(jnp.asarray(y), jnp.asarray(abs(x))), np.arctan2(y, abs(x)), 5e-15)
    found = angle(jnp.asarray(y, jnp.float32), jnp.asarray(abs(x), jnp.float32))
    assert_allclose(found, np.arctan2(y, abs(x)), 1e-6)
    assert angle(jnp.zeros(()), jnp.zeros(())) == 0


# Which function ---------------------------------------------------------------------------------


def test_functions_of_jax_are_known() -> None:
    known = {
        jax.nn.relu: "relu",
        jnp.tanh: "tanh",
        jax.scipy.special.erf: "erf",
        jnp.abs: "abs",
        jax.nn.silu: "silu",
        jax.nn.gelu: "gelu_tanh",
        functools.partial(jax.nn.gelu, approximate=False): "gelu",
        functools.partial(jax.nn.gelu, approximate=True): "gelu_tanh",
    }
    assert {dual(f).name: name for f, name in known.items()} == {n: n for n in known.values()}
    steep = dual(functools.partial(jax.nn.leaky_relu, negative_slope=0.3))
    assert steep.closed_form
    assert steep.value(0.5, 1.0, 1.0) == leaky_relu(0.3).value(0.5, 1.0, 1.0)


def test_gelu_is_not_its_approximation() -> None:
    exact, approximate = (dual(n).value(0.5, 1.0, 1.0) for n in ("gelu", "gelu_tanh"))
    assert 1e-6 < abs(exact - approximate) < 1e-3


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_names_mean_the_same_everywhere(name: str) -> None:
    x = jnp.linspace(-3, 3, 13)
    assert_allclose(dual(name).function(x), ACTIVATIONS[name](x), atol=1e-15)


@pytest.mark.slow
def test_polynomials_and_hermite_series() -> None:
    pair = 0.4, 0.9, 1.3
    assert_allclose(polynomial([0, 0, 1]).both(*pair), dual("square").both(*pair), 1e-14)
    series = hermite([0.5, -1, 0.25, 2])
    assert_allclose(series.value(0.3, 1.0, 1.0), 0.25 + 0.3 + 0.0625 * 0.09 + 4 * 0.027, 1e-13)
    found = jax.jit(quadrature("series", series.function))(*map(jnp.asarray, pair))
    assert_allclose(found, series.both(*pair), 1e-12)
    for degree in range(5):  # E[relu^2p] / 2 is half a double factorial
        expected = np.prod(np.arange(2 * degree - 1, 0, -2.0)) / 2
        assert_allclose(relu_power(degree).value(1.0, 1.0, 1.0), expected, 1e-14)


def test_kinks_are_found() -> None:
    shrink = lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.7, 0)
    assert find("shrink", shrink).points == (-0.7, 0.7)
    assert find("tanh", jnp.tanh).points == ()
    assert find("steep", lambda x: jnp.tanh(10 * x)).order == 4
    third = find("third", lambda x: jnp.maximum(x - 1.25, 0) ** 3)
    assert (third.points, third.order) == ((1.25,), 3)
    jump = find("jump", lambda x: jnp.where(x > 1 / 3, 1.0, 0.0))
    assert_allclose(jump.points, 1 / 3, atol=1e-12)
    assert jump.order == 0


# Edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("name", CLOSED)
def test_correlation_one(name: str, x64: bool) -> None:
    """Values and gradients at ±1 and at variance 0 are finite; round-off beyond ±1 is forgiven."""
    with jax.enable_x64(x64):
        phi = dual(name)
        for pair in [(1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)]:
            point = jnp.array(pair)
            for f in (phi.value, phi.derivative):
                assert np.isfinite(f(*pair))
                assert np.isfinite(jax.grad(lambda p, f=f: f(*p))(point)).all()
        beyond = 1 + (1e-12 if x64 else 1e-6)
        assert_allclose(phi.value(beyond, 1.0, 1.0), phi.value(1.0, 1.0, 1.0), 1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_gradients(name: str) -> None:
    """By finite differences; and ∂ value / ∂ cov is `derivative` (Price) unless φ jumps."""
    phi, pair, h = dual(name), jnp.array([0.4, 0.9, 1.3]), 1e-5
    for f in (phi.value, phi.derivative):
        found = jax.grad(lambda p, f=f: f(*p))(pair)
        steps = [h * e for e in np.eye(3)]
        differences = [(f(*(pair + e)) - f(*(pair - e))) / (2 * h) for e in steps]
        assert_allclose(found, differences, atol=1e-8)
    if name not in ("sign", "step"):
        assert_allclose(jax.grad(phi.value)(*pair), phi.derivative(*pair), 1e-12)
        one = jnp.ones(3)
        assert_allclose(jax.grad(phi.value)(*one), phi.derivative(*one), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu", "hard_tanh", "selu", "softsign", "tanh"])
def test_gradients_of_quadrature(name: str) -> None:
    phi, pair, h = dual(name), jnp.array([0.4, 0.9, 1.3]), 1e-5
    for f in (phi.value, phi.derivative):
        found = jax.grad(lambda p, f=f: f(*p))(pair)
        steps = [h * e for e in np.eye(3)]
        differences = [(f(*(pair + e)) - f(*(pair - e))) / (2 * h) for e in steps]
        assert_allclose(found, differences, atol=1e-7)
    assert_allclose(jax.grad(phi.value)(1.0, 1.0, 1.0), phi.derivative(1.0, 1.0, 1.0), 1e-7)
    for edge in (jnp.array([-1.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 1.0])):
        assert np.isfinite(jax.grad(lambda p: phi.derivative(*p))(edge)).all()


def test_impossible_covariances_are_refused() -> None:
    relu = dual("relu")
    with pytest.raises(ValueError, match=r"\|cov\| exceeds sqrt\(var1 var2\)"):
        relu.value(1.1, 1.0, 1.0)
    with pytest.raises(ValueError, match="without NaN"):
        relu.value(jnp.nan, 1.0, 1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        relu.value(0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="unknown activation 'rellu'"):
        dual("rellu")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jnp.log, "not finite at"),
        (lambda x: jnp.exp(x * x), "not finite at|grows too fast"),
        (lambda x: jnp.exp(0.3 * x * x), "grows too fast"),
        (lambda x: 1 / x, "unbounded near"),
        (lambda x: jnp.sqrt(jnp.abs(x)), "unbounded near"),
        (jnp.floor, "kinks or jumps"),
        (jnp.cumsum, "does not act elementwise"),
        (jnp.sum, "does not act elementwise"),
    ],
)
def test_functions_without_a_dual(function: object, message: str) -> None:
    with pytest.raises(tp.ActivationError, match=message):
        dual(function)  # type: ignore[arg-type]


def test_second_moments_that_are_infinite_at_some_variance() -> None:
    phi = dual(lambda x: jnp.exp(x * x / 8))
    # E = (1 - 2 a var)^2 - ..., with a = 1/8: finite below variance 2.
    assert_allclose(phi.value(0.0, 1.0, 1.0), 1 / (1 - 1 / 4), 1e-10)
    with pytest.raises(tp.ActivationError, match="is infinite or too large"):
        phi.value(0.5, 2.5, 2.5)


# Properties -------------------------------------------------------------------------------------

variances = st.floats(1e-3, 30)
correlations = st.floats(-1, 1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CLOSED), correlations, variances, variances)
def test_symmetric_and_bounded(name: str, c: float, var1: float, var2: float) -> None:
    phi = dual(name)
    if name == "exp":
        var1, var2 = min(var1, 3), min(var2, 3)
    cov = c * np.sqrt(var1 * var2)
    for f in (phi.value, phi.derivative):
        found, one, two = f(cov, var1, var2), f(var1, var1, var1), f(var2, var2, var2)
        assert_allclose(found, f(cov, var2, var1), 1e-10, 1e-12)
        assert abs(found) <= np.sqrt(one * two) * (1 + 1e-9) + 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), correlations, variances, variances, st.floats(0.1, 10))
def test_homogeneous(p: int, c: float, var1: float, var2: float, scale: float) -> None:
    phi, cov = relu_power(p), c * np.sqrt(var1 * var2)
    for f, power in ((phi.value, p), (phi.derivative, p - 1)):
        scaled = f(scale**2 * cov, scale**2 * var1, scale**2 * var2)
        size = scale ** (2 * power) * f(var1, var1, var1) ** 0.5 * f(var2, var2, var2) ** 0.5
        assert_allclose(scaled, scale ** (2 * power) * f(cov, var1, var2), 1e-7, 1e-7 * size)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CLOSED), st.integers(0, 2**32 - 1))
def test_positive_semidefinite(name: str, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(6, 3))
    x[1] = x[0]  # singular already
    cov = x @ x.T / 3
    var = np.diag(cov)
    for gram in dual(name).both(cov, var[:, None], var[None]):
        eigenvalues = np.linalg.eigvalsh(np.asarray(gram))
        assert eigenvalues[0] >= -1e-7 * max(abs(eigenvalues[-1]), 1)


@pytest.mark.parametrize(
    "function", [jax.nn.softmax, lambda x: x - jnp.mean(x), lambda x: x / jnp.linalg.norm(x)]
)
def test_functions_of_a_whole_array_are_refused(function: object) -> None:
    with pytest.raises(tp.ActivationError, match="does not act elementwise"):
        dual(function)  # type: ignore[arg-type]
