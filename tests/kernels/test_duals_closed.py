"""Closed forms of dual activations against mpmath and against the library's own quadrature.

Errors are in units of the bound √(E[φ(u)²] E[φ(v)²]) of what is compared: at a negative correlation
the value itself may be a difference of large numbers.
"""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import gaussians as oracle

from tplimit.kernels.duals.activations import (
    Dual,
    dual,
    hermite,
    leaky_relu,
    polynomial,
    relu_power,
)
from tplimit.kernels.duals.quadrature import quadrature
from tplimit.networks.activations import ACTIVATIONS

SERIES = (0.5, -1.0, 0.25, 2.0, 0.375)
#: The library's dual, and the oracle's functions.
CASES: dict[str, tuple[Dual, tuple[oracle.Form, oracle.Form]]] = {
    **{name: (dual(name), oracle.FORMS[name]) for name in ACTIVATIONS if dual(name).closed_form},
    **{f"relu^{p}": (relu_power(p), oracle.relu_power(p)) for p in (0, 1, 3)},
    **{f"leaky {a}": (leaky_relu(a), oracle.leaky_relu(a)) for a in (0.3, -0.5)},
    "polynomial": (polynomial(SERIES), oracle.polynomial(SERIES)),
    "hermite": (hermite(SERIES), oracle.hermite(SERIES)),
}
#: With jumps: gradients across are infinite at ±1, and there is no derivative of distributions.
JUMPS = {"sign", "step", "relu^0"}
#: The others are left to the slow tests: mpmath takes seconds for each.
QUICK = {"relu", "erf", "relu^3", "step", "polynomial"}
VARIANCES = [(0.01, 0.02), (0.3, 6.0), (1.0, 1.0), (6.0, 5.0)]
PAIRS = [(c, *variances) for variances in VARIANCES for c in (0.0, 0.5, 0.95, -0.9)]


def some_quick(quick: set[str] = QUICK) -> list[object]:
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in quick)) for n in CASES]


pytestmark = pytest.mark.usefixtures("float64")


def bound(phi: Dual, var1: np.ndarray, var2: np.ndarray) -> list[np.ndarray]:
    """√(E[φ(u)²] E[φ(v)²]), and of the derivatives."""
    pairs = zip(phi.both(var1, var1, var1), phi.both(var2, var2, var2), strict=True)
    return [np.sqrt(np.asarray(a * b)) for a, b in pairs]


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_itself(name: str) -> None:
    """Its inner means, by quadrature of the function; its derivatives, by differences."""
    forms = CASES[name][1]
    for phi, smoothed in forms:
        for m, t in ((0.3, 0.8), (-1.1, 0.4)):
            found = float(smoothed(mp.mpf(m), mp.mpf(t)))
            assert_allclose(found, float(oracle.mean(phi, m, t)), 1e-11, 1e-13)
    for x in (-1.3, 0.4, 2.2):
        assert_allclose(float(forms[1][0](mp.mpf(x))), float(mp.diff(forms[0][0], x)), atol=1e-9)
        assert_allclose(float(forms[0][0](mp.mpf(x))), CASES[name][0].function(x), 1e-13)


@pytest.mark.parametrize("name", some_quick())
def test_closed_forms_against_mpmath(name: str) -> None:
    """16 pairs, value and derivative, to some 50 units of rounding."""
    phi, forms = CASES[name]
    c, var1, var2 = np.array(PAIRS).T
    found, sizes = phi.both(c * np.sqrt(var1 * var2), var1, var2), bound(phi, var1, var2)
    for form, one, size in zip(forms, found, sizes, strict=True):
        expected = np.array([float(oracle.expectation(form, *pair)) for pair in PAIRS])
        assert (np.abs(one - expected) <= 1e-14 * size).all(), np.abs(one - expected) / size


@pytest.mark.parametrize("name", some_quick({"relu", "erf"}))
def test_closed_forms_against_quadrature(name: str) -> None:
    """1e-11 by Hermite series where these converge, or to what the rule for kinks promises."""
    phi = CASES[name][0]
    c, var1, var2 = np.array([*PAIRS, (0.9999, 1.0, 1.0), (-1.0, 2.0, 0.5)]).T
    cov = c * np.sqrt(var1 * var2)
    found = jax.jit(quadrature(name, phi.function))(*map(jnp.asarray, (cov, var1, var2)))
    for one, closed, size in zip(
        found, phi.both(cov, var1, var2), bound(phi, var1, var2), strict=True
    ):
        error = np.abs(one - closed)
        assert (error <= 1e-6 * size).all(), error / size
        assert (error <= 1e-11 * size)[np.abs(c) < 0.9].all(), error / size


# Correlation ±1 ---------------------------------------------------------------------------------

EDGES = [(c, *variances) for variances in VARIANCES for c in (1.0, -1.0)]


@pytest.mark.parametrize("name", some_quick())
def test_values_at_correlation_one(name: str) -> None:
    """Against E[φ(σ₁ x) φ(±σ₂ x)], at the rounded product of the roots and one unit beside it.

    Closed forms take a correlation within 4 ε of 1 for 1, so that no root of ε is left: the rest
    is rounding, of exponentials and polynomials of the variances too.
    """
    phi, forms = CASES[name]
    for x64, accuracy in ((True, 1e-14), (False, 2e-6)):
        with jax.enable_x64(x64):
            c, var1, var2 = np.array(EDGES, "f8" if x64 else "f4").T
            cov, sizes = c * np.sqrt(var1 * var2), bound(phi, var1, var2)
            beside = cov, np.nextafter(cov, 2 * cov), np.nextafter(cov, 0 * cov)
            found = [phi.both(one, var1, var2) for one in beside]
        exact = list(zip(c.tolist(), var1.tolist(), var2.tolist(), strict=True))
        for order, form in enumerate(forms):
            expected = np.array([float(oracle.expectation(form, *pair)) for pair in exact])
            for one in found:
                error = np.abs(one[order] - expected)
                error /= np.maximum(sizes[order], np.finfo("f4").tiny)
                assert error.max() < accuracy, (x64, error)


@pytest.mark.parametrize("name", some_quick({"relu"}))
def test_gradients_at_correlation_one(name: str) -> None:
    """Along correlation ±1 always right; across it E[φ' φ'], where φ has no jump.

    A change of ``var1`` by a share ε and of ``cov`` by half of it stays at correlation ±1; there
    the derivative is that of E[φ(σ₁ x) φ(±σ₂ x)], here by differences of mpmath.
    """
    phi, forms = CASES[name]
    for x64, accuracy in ((True, 1e-9), (False, 1e-4)):
        with jax.enable_x64(x64):
            for c, var1, var2 in [(1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, 4.0, 0.25)]:
                pair = jnp.array([c * np.sqrt(var1 * var2), var1, var2])
                size = max(1.0, *map(float, np.ravel(bound(phi, *np.array([[var1], [var2]])))))
                for order, f in enumerate((phi.value, phi.derivative)):
                    slope = np.asarray(jax.grad(lambda p, f=f: f(*p))(pair), np.float64)
                    assert np.isfinite(slope).all()
                    along = oracle.along(forms[order], c, var1, var2)
                    found = slope[1] + slope[0] * float(pair[0]) / (2 * var1)
                    assert abs(found - float(along)) < accuracy * size, (order, c, var1)
                if name not in JUMPS:
                    across = oracle.expectation(forms[1], c, var1, var2)
                    slope = jax.grad(lambda p: phi.value(*p))(pair)[0]
                    assert abs(float(slope) - float(across)) < accuracy * size


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n != "relu"))
        for n in ("relu", "abs", "step", "sign", "relu2", "relu^3", "erf", "gelu")
    ],
)
def test_close_to_correlation_one(name: str, x64: bool) -> None:
    """At 1 - 1e-2, ..., 1 - 1e-6: to 12 units of rounding, where half of the digits could be lost.

    The correlation is that of the rounded arguments, so that only the formula is judged.
    """
    epsilon = np.finfo("f8" if x64 else "f4").eps
    phi, forms = CASES[name]
    with jax.enable_x64(x64):
        for gap in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            cov = np.asarray(1 - gap, "f8" if x64 else "f4")
            found = phi.both(cov, np.ones_like(cov), np.ones_like(cov))
            for order, one in enumerate(found):
                expected = float(oracle.expectation(forms[order], float(cov), 1, 1))
                error = abs(float(one) - expected) / max(abs(expected), 1e-30)
                assert error < 12 * epsilon, (gap, order, error / epsilon)
