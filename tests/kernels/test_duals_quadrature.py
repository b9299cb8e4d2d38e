"""Dual activations by quadrature: values, derivatives and stated errors.

The reference is a rule that is cut where u or v meets a kink, with more nodes than it needs: with
60 and with 80 of them between two cuts it agrees with itself to 1e-13, and with mpmath in
`test_duals.py`. Errors are in units of √(E[φ(u)²] E[φ(v)²]).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import duals as oracle

from tplimit.kernels.duals.activations import Dual, dual
from tplimit.networks.activations import ACTIVATIONS

_sigmoid = lambda x: 1 / (1 + mp.exp(-x))
_softplus = lambda x: mp.log1p(mp.exp(x))
_hard_sigmoid = lambda x: min(max(x + 3, 0), 6) / 6
_ALPHA, _SCALE = mp.mpf("1.6732632423543772848"), mp.mpf("1.0507009873554804934")
#: The definition in mpmath, and the kinks.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], tuple[float, ...]]] = {
    "celu": (lambda x: x if x > 0 else mp.expm1(x), (0,)),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), (0,)),
    "gelu_tanh": (
        lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
        (),
    ),
    "hard_sigmoid": (_hard_sigmoid, (-3, 3)),
    "hard_silu": (lambda x: x * _hard_sigmoid(x), (-3, 3)),
    "hard_tanh": (lambda x: min(max(x, -1), 1), (-1, 1)),
    "mish": (lambda x: x * mp.tanh(_softplus(x)), ()),
    "relu6": (lambda x: min(max(x, 0), 6), (0, 6)),
    "selu": (lambda x: _SCALE * (x if x > 0 else _ALPHA * mp.expm1(x)), (0,)),
    "sigmoid": (_sigmoid, ()),
    "silu": (lambda x: x * _sigmoid(x), ()),
    "softplus": (_softplus, ()),
    "softsign": (lambda x: x / (1 + abs(x)), (0,)),
    "tanh": (mp.tanh, ()),
}
VARIANCES = [(0.01, 0.02), (0.3, 6.0), (1.0, 1.0), (6.0, 5.0)]
PAIRS = [(c, *pair) for pair in VARIANCES for c in (1e-12, 0.5, 0.95, -0.9, 0.9999)]
QUICK = {"tanh"}


def some_quick(quick: set[str]) -> list[object]:
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in quick)) for n in FUNCTIONS]


pytestmark = pytest.mark.usefixtures("float64")


def both(name: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The function and its slope."""
    f = dual(name).function
    return jax.jit(f), jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])


def bound(phi: Dual, var1: np.ndarray, var2: np.ndarray) -> list[np.ndarray]:
    """√(E[φ(u)²] E[φ(v)²]), and of the derivatives."""
    pairs = zip(phi.both(var1, var1, var1), phi.both(var2, var2, var2), strict=True)
    return [np.sqrt(np.asarray(a * b)) for a, b in pairs]


def test_all_names_are_here() -> None:
    assert set(FUNCTIONS) == {name for name in ACTIVATIONS if not dual(name).closed_form}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_what_they_are_called(name: str) -> None:
    """Values and slopes of JAX's function against the definition in mpmath."""
    points = np.concatenate([np.linspace(-8.05, 8.05, 24), [-0.3, 0.01, 0.7]])
    definition = FUNCTIONS[name][0]
    for order, found in enumerate(both(name)):
        expected = [float(mp.diff(definition, mp.mpf(float(x)), order)) for x in points]
        assert_allclose(found(points), expected, 1e-11, 1e-13)


@pytest.mark.parametrize("name", some_quick(QUICK))
def test_values_and_stated_errors(name: str) -> None:
    """1e-10 for smooth functions, 1e-6 for those with kinks; and the stated errors exceed the true.

    These are "without those of rounding": 3e-12 for the sums of 512 terms and of the reference.
    For variances of 0.1 and more they are not beyond what is promised either.
    """
    phi, cuts = dual(name), FUNCTIONS[name][1]
    promised = 1e-6 if cuts else 1e-10
    c, var1, var2 = np.array(PAIRS).T
    cov = c * np.sqrt(var1 * var2)
    found, stated = phi.both(cov, var1, var2), phi.error(cov, var1, var2)
    for f, one, error, size in zip(both(name), found, stated, bound(phi, var1, var2), strict=True):
        pairs = zip(cov, var1, var2, strict=True)
        expected = np.array([oracle.on_a_grid(f, cuts, *pair, nodes=80) for pair in pairs])
        true, claimed = np.abs(one - expected) / size, np.asarray(error) / size
        assert true.max() < promised, true
        assert (true <= claimed + 3e-12).all(), true - claimed
        assert (claimed < promised)[var1 > 0.1].all(), claimed


@pytest.mark.parametrize(
    "name", ["elu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tanh", "relu6"))]
)
def test_single_precision_does_not_depend_on_the_flag(name: str) -> None:
    """float32 arguments give float32, whether or not JAX has float64, by pieces too."""
    arguments = [np.array(a, np.float32) for a in ([0.5, 0.9999], [1.0, 1.0], [1.0, 1.0])]
    exact = dual(name).both(*(a.astype(np.float64) for a in arguments))
    for x64 in (True, False):
        with jax.enable_x64(x64):
            found = dual(name).both(*arguments)
        for one, expected in zip(found, exact, strict=True):
            assert one.dtype == np.float32
            assert_allclose(one, expected, 2e-5)


# Correlation ±1 ---------------------------------------------------------------------------------


def on_a_line(f: Callable[[Any], Any], cuts: Any, c: int, var1: float, var2: float) -> float:
    """E[f(σ₁ x) f(±σ₂ x)] by Gauss-Legendre rules between the kinks."""
    x0, w0 = np.polynomial.legendre.leggauss(120)
    kinks = [s * t / np.sqrt(var) for t in (*cuts, 0) for var in (var1, var2) for s in (-1, 1)]
    ends = np.unique(np.clip([-14, -4, 4, 14, *kinks], -14, 14))
    half = np.diff(ends)[:, None] / 2
    z = (ends[:-1, None] + half * (1 + x0)).ravel()
    weights = (half * w0).ravel() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    values = np.asarray(f(np.sqrt(var1) * z)) * np.asarray(f(c * np.sqrt(var2) * z))
    return float(np.sum(weights * values))


@pytest.mark.parametrize("name", some_quick(QUICK))
def test_values_at_correlation_one(name: str) -> None:
    """At the rounded product of the roots and one unit beside it; in float32 to 2e-5."""
    phi, cuts = dual(name), FUNCTIONS[name][1]
    edges = [(c, *pair) for pair in VARIANCES for c in (1, -1)]
    for x64, accuracy in ((True, 1e-6 if cuts else 1e-10), (False, 2e-5)):
        with jax.enable_x64(x64):
            c, var1, var2 = np.array(edges, "f8" if x64 else "f4").T
            cov = c * np.sqrt(var1 * var2)
            found = [phi.both(a, var1, var2) for a in (cov, np.nextafter(cov, 0 * cov))]
        sizes = bound(phi, var1, var2)
        for order, f in enumerate(both(name)):
            expected = [on_a_line(f, cuts, *edge) for edge in edges]
            for one in found:
                error = np.abs(np.asarray(one[order], np.float64) - expected) / sizes[order]
                assert error.max() < accuracy, (x64, order, error)


@pytest.mark.parametrize("name", some_quick(set()))
def test_gradients_at_correlation_one(name: str) -> None:
    """Along correlation ±1 that of E[φ(σ₁ x) φ(±σ₂ x)]; across it E[φ' φ'], of the value.

    The tangent of `derivative` is that of quadrature: 1e-6 where φ' is smooth or bends, and finite
    where φ' jumps.
    """
    phi, cuts = dual(name), FUNCTIONS[name][1]
    for c, var1, var2 in [(1, 1.0, 1.0), (-1, 1.0, 1.0), (1, 4.0, 0.25)]:
        pair = jnp.array([c * np.sqrt(var1 * var2), var1, var2])
        for order, f in enumerate(both(name)):
            g = phi.derivative if order else phi.value
            slope = np.asarray(jax.grad(lambda p, g=g: g(*p))(pair))
            assert np.isfinite(slope).all()
            if order and name in ("hard_tanh", "hard_sigmoid", "relu6", "selu", "hard_silu"):
                continue
            h = 1e-4 * var1
            ends = [on_a_line(f, cuts, c, var1 + k * h, var2) for k in (-2, -1, 1, 2)]
            along = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
            found = slope[1] + slope[0] * float(pair[0]) / (2 * var1)
            assert abs(found - along) < 1e-6, (order, c, var1)
            if not order:
                expected = on_a_line(both(name)[1], cuts, c, var1, var2)
                assert abs(slope[0] - expected) < 1e-6
