"""neural-tangents: where both libraries have a kernel, where theirs is wrong, and the bridge.

Their diagonals are compared too, except those listed in `WRONG_DIAGONAL`.
"""

import subprocess
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from oracles import duals as oracle, gaussians
from test_kernels import off_diagonal

import tplimit as tp
from tplimit import kernels
from tplimit.kernels import from_neural_tangents, import_neural_tangents, mlp

rng = np.random.default_rng(5)
X, Y = rng.normal(size=(4, 4)), rng.normal(size=(2, 4))


pytestmark = pytest.mark.usefixtures("float64")


def power(n: int) -> kernels.Dual:
    return kernels.polynomial([0.0] * n + [1.0])


SERIES = (0.1, 0.7, -0.2, 0.3)
DEPTHS = range(1, 11)
#: Our activation, theirs, their arguments, w_std, depths.
SHARED: dict[str, tuple[Any, str, tuple[Any, ...], float, Any]] = {
    "abs": ("abs", "Abs", (), 1.3, DEPTHS),
    "cos": ("cos", "Cos", (), 1.3, DEPTHS),
    "erf": ("erf", "Erf", (), 1.3, DEPTHS),
    "exp": ("exp", "Exp", (), 0.3, DEPTHS),
    "exp(x/2)": (lambda x: jnp.exp(x / 2), "Exp", (1, 0.5), 0.6, (1, 2, 10)),
    "gaussian": ("gaussian", "Gaussian", (), 1.3, DEPTHS),
    "gelu": ("gelu", "Gelu", (), 1.3, DEPTHS),
    "identity": ("identity", "Identity", (), 1.3, DEPTHS),
    "leaky 0.01": ("leaky_relu", "LeakyRelu", (0.01,), 1.3, DEPTHS),
    "leaky 0.3": (kernels.leaky_relu(0.3), "LeakyRelu", (0.3,), 1.3, DEPTHS),
    "leaky -0.5": (kernels.leaky_relu(-0.5), "LeakyRelu", (-0.5,), 1.3, DEPTHS),
    "relu": ("relu", "Relu", (), 1.3, DEPTHS),
    "sign": ("sign", "Sign", (), 1.3, DEPTHS),
    "sin": ("sin", "Sin", (), 1.3, DEPTHS),
    "polynomial": (kernels.polynomial(SERIES), "Polynomial", (list(SERIES),), 0.8, (1, 2, 5)),
    # The second moment is raised to the power in each layer: deeper networks over- or underflow.
    "x^2": (power(2), "Monomial", (2,), 0.7, (1, 2, 3, 4, 5)),
    "x^3": (power(3), "Monomial", (3,), 0.5, (1, 2, 3)),
    "x^4": (power(4), "Monomial", (4,), 0.4, (1, 2)),
    "x^5": (power(5), "Monomial", (5,), 0.3, (1, 2)),
    # Theirs are NaN in deeper networks, see below.
    "step": (kernels.relu_power(0), "RectifiedMonomial", (0,), 1.3, (1,)),
    "relu^2": ("relu2", "RectifiedMonomial", (2,), 0.8, (1,)),
    "relu^3": (kernels.relu_power(3), "RectifiedMonomial", (3,), 0.7, (1,)),
    "relu^4": (kernels.relu_power(4), "RectifiedMonomial", (4,), 0.6, (1,)),
}
#: Off by a percent (sign), or NaN.
WRONG_DIAGONAL = {"sign", "step", "relu^2", "relu^3", "relu^4"}
QUICK = {"step", "relu^3", "x^3"}


def theirs(stax: ModuleType, phi: Any, depth: int, w: float, b: float) -> Any:
    layers = [layer for _ in range(depth) for layer in (stax.Dense(1, w, b), phi)]
    return stax.serial(*layers, stax.Dense(1, w, b))[2]


@pytest.mark.parametrize("b_std", [0.0, 0.3])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in SHARED]
)
def test_agrees_with_neural_tangents(stax: ModuleType, name: str, b_std: float) -> None:
    """In float64 to 1e-10, between different points and on the diagonal.

    Off the diagonal of networks of sign all is small: there 1e-13 of the variance will do.
    """
    ours, their, arguments, w_std, depths = SHARED[name]
    for depth in depths:
        net = mlp(depth, ours, w_std, b_std)
        other = theirs(stax, getattr(stax, their)(*arguments), depth, w_std, b_std)
        expected, found = other(X, Y, ("nngp", "ntk")), net(X, Y)
        for which in ("nngp", "ntk"):
            one, two = getattr(found, which), getattr(expected, which)
            scale = float(np.max(found.var1)) if name == "sign" else 0.0
            assert_allclose(one, two, 1e-10, 1e-13 * scale, err_msg=f"{which}, depth {depth}")
        if name not in WRONG_DIAGONAL:
            expected, found = other(X, None, ("nngp", "ntk")), net(X)
            for which in ("nngp", "ntk"):
                one, two = getattr(found, which), getattr(expected, which)
                # Half of the digits of theirs may be lost, in each layer: see below for the truth.
                close = 1e-10 if which == "nngp" or name not in BENT else 1e-6
                assert_allclose(np.diag(one), np.diag(two), close, err_msg=f"{which}, {depth}")


#: Kinked at 0: their NTK at correlation 1 - ε is that of the angle √(2 ε).
BENT = {"abs", "leaky 0.01", "leaky 0.3", "leaky -0.5", "relu"}


@pytest.mark.filterwarnings("ignore:Inputs to this layer are assumed")
@pytest.mark.parametrize(
    "degree", [5, *(pytest.param(k, marks=pytest.mark.slow) for k in range(4))]
)
def test_hermite_polynomials_agree(stax: ModuleType, degree: int) -> None:
    """Theirs needs coordinates of variance 1: points on the sphere, w² + b² = 1.

    Variances are raised to the power in each layer of ours, and with them their rounding.
    """
    x = X / np.sqrt(np.mean(X**2, axis=1, keepdims=True))
    for w in (1.0, 0.8):
        b = float(np.sqrt(1 - w**2))
        for depth in (1, 2, 3) if degree > 3 else DEPTHS:
            other = theirs(stax, stax.Hermite(degree), depth, w, b)(x, None, ("nngp", "ntk"))
            found = mlp(depth, kernels.hermite([0.0] * degree + [1.0]), w, b)(x)
            for which in ("nngp", "ntk"):
                one, two = getattr(found, which), getattr(other, which)
                # Powers of small correlations: relative to the diagonal.
                assert_allclose(one, two, 1e-10, 1e-13 * np.max(two))


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


# Where neural-tangents is wrong -----------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.parametrize("slope", [-1.0, -0.5, 0.01, 0.3])
def test_diagonal_of_leaky_rectifiers(slope: float) -> None:
    """E[φ²] = var (1 + a²) / 2 and E[φ'²] = (1 + a²) / 2: ours to round-off through 10 layers."""
    w, b, half = 1.3, 0.3, (1 + slope**2) / 2
    theta = k = w**2 * np.sum(X * X, 1) / X.shape[1] + b**2
    for _ in range(10):
        k, theta = w**2 * half * k + b**2, w**2 * half * (k + theta) + b**2
    found = mlp(10, kernels.leaky_relu(slope), w, b)(X)
    assert_allclose(np.diag(found.nngp), k, 1e-13)
    assert_allclose(np.diag(found.ntk), theta, 1e-13)


def test_diagonal_of_jumps(stax: ModuleType) -> None:
    """sign² = 1 at every depth; theirs may be off by a percent in double precision."""
    assert_array_equal(np.diag(mlp(3, "sign")(X).nngp), 1)
    theirs_of_sign = theirs(stax, stax.Sign(), 3, 1.0, 0.0)(X, None, "nngp")
    assert_allclose(np.diag(theirs_of_sign), 1, rtol=0.05)


def test_powers_of_relu_on_the_diagonal(stax: ModuleType) -> None:
    assert np.isnan(theirs(stax, stax.RectifiedMonomial(2), 1, 1.0, 0.0)(X, None, "nngp")).any()
    k = np.sum(X * X, 1) / X.shape[1]
    assert_allclose(np.diag(mlp(1, "relu2")(X).nngp), 1.5 * k**2, 1e-14)


@pytest.mark.parametrize("degree", [0, 2, 3])
def test_deep_powers_of_relu_are_not_a_number(stax: ModuleType, degree: int) -> None:
    """Of more than one hidden layer, at different points too; ours are positive and finite."""
    with np.errstate(all="ignore"):
        wrong = theirs(stax, stax.RectifiedMonomial(degree), 2, 0.8, 0.1)(X, Y, ("nngp", "ntk"))
    assert np.isnan(wrong.ntk).any()
    found = mlp(2, kernels.relu_power(degree), 0.8, 0.1)(X, Y)
    assert np.isfinite(found.ntk).all() and (np.asarray(found.nngp) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu"])
def test_close_to_correlation_one_in_single_precision(stax: ModuleType, name: str) -> None:
    """Points (m, ±k) with 1 - c = 2 k² / (m² + k²), whose Gram matrix float32 holds exactly.

    Whatever differs from mpmath is therefore the formula: 1 - c from 1e-6 to 1e-2, 24 points each.
    Ours stays within 4 units of rounding, 5e-7, everywhere. Theirs takes the angle from
    var₁ var₂ - cov², which cancels: ε / √(1 - c), more than 10 times ours at 1e-6.
    """
    phi = {"relu": stax.Relu(), "abs": stax.Abs(), "leaky_relu": stax.LeakyRelu(0.01)}[name]
    for k in (1, 7, 22, 71):
        m = 1001 + 16 * np.arange(24)
        cov, var = (m * m - k * k) / 2, (m * m + k * k) / 2
        value, slope = (
            np.array([float(gaussians.expectation(form, c, 1, 1)) for c in _ratios(cov, var)])
            for form in gaussians.FORMS[name]
        )
        truth = {"nngp": var * value, "ntk": var * value + slope * cov}
        with jax.enable_x64(False):
            x, y = (np.stack([m, np.full(24, sign * k)], 1).astype("f4") for sign in (1, -1))
            found, other = mlp(1, name)(x, y), theirs(stax, phi, 1, 1.0, 0.0)(x, y, ("nngp", "ntk"))
        for which, expected in truth.items():
            ours, lost = (
                np.abs(np.diag(getattr(one, which)) / expected - 1).max() for one in (found, other)
            )
            assert ours < 4 * np.finfo(np.float32).eps, (k, which, ours)
        if k == 1:
            assert lost > 10 * ours, (lost, ours)


def _ratios(a: np.ndarray, b: np.ndarray) -> list[Any]:
    """Exact quotients of integers and halves."""
    return [
        gaussians.mp.mpf(float(p)) / gaussians.mp.mpf(float(q)) for p, q in zip(a, b, strict=True)
    ]


@pytest.mark.filterwarnings("ignore:Numerical Activation", "ignore:Using JAX autodiff")
@pytest.mark.slow
@pytest.mark.parametrize("nodes", [25, 100])
def test_their_quadrature_of_relu(stax: ModuleType, nodes: int) -> None:
    """Against mpmath, at three correlations: percents are missing of their NTK, with 100 nodes too;
    ours sees the kink in the same function, whose name it does not know."""
    by_hand = lambda x: jnp.maximum(x, 0.0)
    phi = stax.ElementwiseNumerical(by_hand, deg=nodes)
    x = np.array([[1.0, 0.2]])
    worst = 0.0
    for y in (np.array([[0.8, 0.9]]), np.array([[1.0, 0.25]]), np.array([[-0.9, 0.3]])):
        var1, var2, cov = (float(np.sum(a * b)) / 2 for a, b in ((x, x), (y, y), (x, y)))
        c = cov / (var1 * var2) ** 0.5
        value, slope = (
            float(gaussians.expectation(form, c, var1, var2)) for form in gaussians.FORMS["relu"]
        )
        truth = value + slope * cov
        found, other = mlp(1, by_hand)(x, y), theirs(stax, phi, 1, 1.0, 0.0)(x, y, ("nngp", "ntk"))
        assert_allclose(found.nngp[0, 0], value, 1e-7)
        assert_allclose(found.ntk[0, 0], truth, 1e-7)
        worst = max(worst, abs(float(other.ntk[0, 0]) / truth - 1))
    assert worst > 1e-3, worst


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


# Their kernels in our training -------------------------------------------------------------------


def convolutional(stax: ModuleType) -> tuple[Any, np.ndarray]:
    layers = (
        stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), stax.AvgPool((2, 2)),
        stax.Conv(1, (2, 2)), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1),
    )  # fmt: skip
    return stax.serial(*layers)[2], np.random.default_rng(6).normal(size=(8, 4, 4, 2))


def attentive(stax: ModuleType) -> tuple[Any, np.ndarray]:
    """Their closed form is that of scores over the width (`linear_scaling`)."""
    attention = stax.GlobalSelfAttention(1, 1, 1, 2, linear_scaling=True)
    layers = stax.Dense(1), attention, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
    return stax.serial(*layers)[2], np.random.default_rng(7).normal(size=(8, 5, 3))


@pytest.mark.filterwarnings("ignore:Linear scaling attention used")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [convolutional, attentive])
def test_training_with_their_kernels(stax: ModuleType, architecture: Any) -> None:
    """Gradient flow as their own `gradient_descent_mse` has it, and steps by powers of matrices."""
    kernel_fn, x = architecture(stax)
    y, lr, steps = np.random.default_rng(8).normal(size=6), 0.3, 40
    k = np.asarray(kernel_fn(x, None, "ntk"))
    tt, st = k[:6, :6], k[6:, :6]
    network = from_neural_tangents(kernel_fn)
    how = {"x": x[:6], "x_test": x[6:], "block": 4, "dtype": np.float64}
    flow = kernels.flow(network, None, y, "mse", [2.0, 30.0], **how)
    predict = import_neural_tangents().predict.gradient_descent_mse(tt, y[:, None])
    for time, train, test in zip((2.0, 30.0), flow.train, flow.test, strict=True):
        expected = predict(time, 0.0, 0.0, st)
        assert_allclose(train, expected[0][:, 0], 1e-8, 1e-10)
        assert_allclose(test, expected[1][:, 0], 1e-8, 1e-10)
    left = np.linalg.matrix_power(np.eye(6) - lr / 6 * tt, steps)
    for method in ("spectral", "iterate"):
        run = kernels.train(network, None, y, "mse", lr, steps, method=method, **how)
        assert_allclose(run.train[-1], y - left @ y, 1e-9, 1e-11)
        assert_allclose(run.test[-1], st @ np.linalg.solve(tt, y - left @ y), 1e-8, 1e-10)
    assert np.abs(run.train[-1]).max() > 0.1
