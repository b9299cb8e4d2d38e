"""What runs along a finite axis, beside one wide network: entries of several orders, vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import error_of

import tplimit as tp

Theta = dict[str, jax.Array]
n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "vwu"}


pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module", params=[1, 2], ids="{} terms".format)
def theta(request: pytest.FixtureRequest) -> Theta:
    return tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=2**14, terms=request.param)


@pytest.fixture(scope="module")
def wide() -> Theta:
    return tp.sample(DECLARED, jax.random.key(1), width=2**21)


def rows(t: Theta) -> jax.Array:
    """Three vectors of different orders."""
    return jnp.stack([t["v"] * len(t["v"]) ** -0.5, t["w"], t["u"] + 0.5 * t["w"]])


def squares(t: Theta) -> jax.Array:
    return jnp.mean(t["v"] ** 2)


VECTORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sort": lambda x: jnp.sort(x, 0),
    "sort downwards": lambda x: jnp.sort(x, 0, descending=True),
    "median": lambda x: jnp.median(x, 0),
    "cummax": lambda x: jax.lax.cummax(x, 0),
    "cummin from the end": lambda x: jax.lax.cummin(x, 0, reverse=True),
    "cumprod": lambda x: jnp.cumprod(x[1:], 0),
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "prod": lambda x: jnp.prod(x[1:], 0),
}


QUICK = ("median", "cumprod")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VECTORS]


@pytest.mark.parametrize("name", NAMES)
def test_vectors(name: str, theta: Theta, wide: Theta):
    """Second moments of every entry, and with another vector."""
    run = lambda t: jnp.stack(
        [jnp.mean(VECTORS[name](rows(t)) ** 2, -1), jnp.mean(VECTORS[name](rows(t)) * t["w"], -1)]
    )
    np.testing.assert_allclose(tp.limit(run)(theta), jax.jit(run)(wide), atol=0.06)


def test_products_add_exponents(theta: Theta):
    found = tp.leading(lambda t: jnp.prod(rows(t), 0) @ (t["v"] * t["w"] * t["u"]))(theta)
    assert found.exponent == tp.leading(lambda t: len(t["v"]) ** 0.5 * squares(t))(theta).exponent
    assert found.coefficient == pytest.approx(1, abs=0.1)


NUMBERS: dict[str, tuple[Callable[[jax.Array, int], Any], list[Any], list[float]]] = {
    "sort": (lambda s, n: jnp.sort(jnp.stack([s * n, -s, s])), [0, 0, 1], [-1, 1, 1]),
    "cumprod": (lambda s, n: jnp.cumprod(jnp.stack([s * n, s / n, s / n])), [1, 0, -1], [1, 1, 1]),
    "cummax": (lambda s, n: jax.lax.cummax(jnp.stack([-s, s / n, s * n])), [0, -1, 1], [-1, 1, 1]),
    "cumsum": (lambda s, n: jnp.cumsum(jnp.stack([s / n, s, s * n])), [-1, 0, 1], [1, 1, 1]),
    "prod": (lambda s, n: jnp.prod(jnp.stack([s * n, s, s / n**2])), [-1], [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_several_orders(name: str, theta: Theta):
    run, exponents, coefficients = NUMBERS[name]
    found = tp.leading(lambda t, s: run(s, float(len(t["v"]))))(theta, jnp.ones(()))
    order = np.atleast_1d(np.asarray(found.exponent, object)) * np.ones(len(exponents), int)
    assert [float(e) for e in order] == [float(e) for e in exponents]
    np.testing.assert_allclose(found.coefficient, coefficients, atol=0.05)


ALONG_A_WIDTH = {
    "sort": jnp.sort, "cummax": lambda x: jax.lax.cummax(x, 0), "cumprod": jnp.cumprod,
    "top_k": lambda x: jax.lax.top_k(x, 3)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", ALONG_A_WIDTH)
def test_along_a_width_there_is_no_order(name: str, theta: Theta):
    error = error_of(
        tp.NoLimitError, tp.limit(lambda t: jnp.mean(ALONG_A_WIDTH[name](t["v"]))), theta
    )
    assert "along a width" in str(error)
    assert "test_orders.py" in str(error)


def test_along_a_finite_axis_the_reason_is_another(theta: Theta):
    run = lambda t: jnp.mean(jax.lax.top_k(rows(t).T, 2)[0])
    error = error_of(tp.UnsupportedOperationError, tp.limit(run), theta)
    assert "not supported yet" in str(error)
