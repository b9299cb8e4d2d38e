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
    run = lambda t: jnp.mean(jnp.lexsort(tuple(rows(t)[:, None]), 0) * 1.0)
    error = error_of(tp.UnsupportedOperationError, tp.limit(run), theta)
    assert "by several arrays" in str(error)


# --- places of ordered entries


def scores(t: Theta) -> jax.Array:
    return jnp.stack([t["v"] + 0.3 * t["u"], t["w"], t["u"] - 0.2])


def gradient(t: Theta, weights: Any) -> jax.Array:
    """Of a sum over ordered entries."""
    weigh = lambda x: jnp.sum(jnp.sort(x, 0).T @ jnp.asarray(weights) * t["w"])
    return jax.grad(weigh)(scores(t))


PLACES: dict[str, Callable[[Theta], jax.Array]] = {
    "argsort": lambda t: jnp.argsort(scores(t), 0) * t["w"],
    "downwards": lambda t: jnp.argsort(scores(t), 0, descending=True) * t["w"],
    "top_k": lambda t: jax.lax.top_k(scores(t).T, 2)[0].T * t["w"],
    "places of top_k": lambda t: jax.lax.top_k(scores(t).T, 2)[1].T * t["w"],
    "take_along_axis": lambda t: jnp.take_along_axis(rows(t), jnp.argsort(scores(t), 0), 0),
    "the largest": lambda t: jnp.take_along_axis(scores(t) ** 2, jnp.argmax(scores(t), 0)[None], 0),
    "by another": lambda t: jnp.stack(jax.lax.sort((*[scores(t)], rows(t)), 0, num_keys=1)),
    "gradient": lambda t: gradient(t, [1.0, 2.0, -1.0]),
    "gradient of a median": lambda t: jax.grad(lambda x: jnp.sum(jnp.median(x, 0) * t["w"]))(
        scores(t)
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_vectors(name: str, theta: Theta, wide: Theta):
    """First and second moments beside one wide network: errors of 2^14 particles, ten times."""
    run = lambda t: jnp.stack(
        [jnp.mean(PLACES[name](t) * t["w"], -1), jnp.mean(PLACES[name](t) ** 2, -1)]
    )
    found, expected = tp.limit(run)(theta), jax.jit(run)(wide)
    np.testing.assert_allclose(found, expected, atol=0.08 * (1 + np.abs(expected).max()))


def numbers(t: Theta) -> jax.Array:
    """Three numbers, in the limit 2, 0, 1."""
    return jnp.stack([2 * squares(t), squares(t) / len(t["v"]), jnp.mean(t["w"] ** 2)])


NUMBERS_IN_ORDER: dict[str, tuple[Callable[[jax.Array], Any], Any]] = {
    "argsort": (jnp.argsort, [1, 2, 0]),
    "top_k": (lambda x: jax.lax.top_k(x, 2)[0], [2, 1]),
    "places of top_k": (lambda x: jax.lax.top_k(x, 2)[1], [0, 2]),
    "argpartition": (lambda x: jnp.sort(jnp.argpartition(x, 1)[:2]), [1, 2]),
    "indexed": (lambda x: x[jnp.argsort(-x)], [2, 1, 0]),
    "ranks": (lambda x: jnp.argsort(jnp.argsort(x)), [2, 0, 1]),
    "gradient": (jax.grad(lambda x: jnp.sort(x) @ jnp.arange(3.0)), [2, 0, 1]),
    "gradient of a median": (jax.grad(jnp.median), [0, 0, 1]),
}


@pytest.mark.parametrize("name", NUMBERS_IN_ORDER)
def test_places_of_numbers(name: str, theta: Theta):
    run, exact = NUMBERS_IN_ORDER[name]
    found = tp.limit(lambda t: run(numbers(t)))(theta)
    np.testing.assert_allclose(found, exact, atol=0.05)


TIES: dict[str, Callable[[Theta], Any]] = {
    "argsort": lambda t: jnp.argsort(jnp.stack([squares(t), jnp.mean(t["w"] ** 2)])),
    "top_k": lambda t: jax.lax.top_k(jnp.stack([squares(t), jnp.mean(t["w"] ** 2), 0.0]), 1)[1],
    "indexed": lambda t: jnp.array([1.0, 5.0, 9.0])[
        jnp.argsort(jnp.stack([squares(t), 3.0, jnp.mean(t["u"] ** 2)]))
    ],
    "vectors": lambda t: jnp.mean(
        jnp.argsort(jnp.stack([t["v"], t["v"] + t["w"] / len(t["v"]) ** 0.5]), 0) * 1.0
    ),
}


@pytest.mark.parametrize("name", TIES)
def test_an_order_that_is_not_known_is_refused(name: str, theta: Theta):
    error = error_of(tp.CancellationError, tp.limit(TIES[name]), theta)
    assert "The order of values" in str(error)
    assert "test_orders.py" in str(error)


MOVED: dict[str, Callable[[jax.Array, Theta], jax.Array]] = {
    "places": lambda x, t: jnp.argsort(x, 0) * t["u"] ** 2,
    "top_k": lambda x, t: jax.lax.top_k(x.T, 1)[1].T * t["u"] ** 2,
    "take": lambda x, t: jnp.take_along_axis(
        jnp.stack([t["u"] ** 2, 3 * t["u"] ** 2]), jnp.argsort(x, 0), 0
    ),
    "gradient": lambda x, t: (
        jax.grad(lambda x: jnp.sum(jnp.sort(x, 0)[0] * t["u"] ** 2))(x) * t["u"] ** 2
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_flips_on_a_share_of_coordinates_is_not_taken_for_zero(name: str, theta: Theta):
    """Keys that differ by n^-1/2 order a share n^-1/2 of the coordinates otherwise."""

    def run(t: Theta) -> jax.Array:
        root = len(t["v"]) ** 0.5
        keys = [jnp.stack([t["v"] + c * t["u"] ** 2 / root, t["w"]]) for c in (0.0, 1.0)]
        first, second = (jnp.mean(MOVED[name](key, t), -1) for key in keys)
        return root * (second - first)

    error = error_of(tp.CancellationError, tp.limit(run), theta)
    assert "unknown" in str(error)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_comparison_with_an_index_is_wrong_where_the_index_is(terms):
    """The next term of the average hangs on the share of coordinates whose index is another one."""
    n = tp.Width("n")
    declared = {"u": tp.normal((2, n)), "w": tp.normal((n,))}

    def run(t):
        root = t["w"].shape[0] ** 0.5
        moved = t["u"] + t["w"] ** 2 * jnp.asarray([[1.0], [-1.0]]) / root
        return root * jnp.mean((t["w"] ** 2 - 1) * (jnp.argmax(moved, 0) == 0))

    theta = tp.sample(declared, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    assert tp.series(run)(theta).remainder >= 0
