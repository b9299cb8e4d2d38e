"""Noise of the limit of a deferred matrix: matched rows, dropped directions, many rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_deferred_gaussian import (
    Deferred,
    H,
    P,
    Q,
    Z,
    assert_orthonormal,
    empty,
    normal,
    overlap,
    rank,
)

from tplimit.gaussian import noise
from tplimit.gaussian.deferred import Law, NoiseRows
from tplimit.gaussian.kinds import Stream

SHAPES = [(5, 5), (9, 16), (16, 9)]  # n_out, n_in
EXACT = Law(exact=True, tolerance=1e-24)
LIMIT = Law(exact=False, tolerance=1e-6)


pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("function", "bound"), [(np.zeros_like, 1e-12), (np.square, 0.06)], ids=["linear", "square"]
)
def test_limit_rows_are_matched(
    key: jax.Array, function: Callable[[np.ndarray], np.ndarray], bound: float
) -> None:
    """Fresh rows: mean 0, orthonormal to each other, to initial vectors and to other stores.

    To round-off in a linear program, where all known directions are combinations of noise rows;
    else far better than the `1/sqrt(M)` = 0.05 of unmatched rows (the largest of some hundred
    overlaps would be 0.15): rows of other stores and the own directions are treated in turn, once.
    """
    M = 400
    stream = Stream(jax.random.key(3))
    initial = jax.jit(noise.matched)(stream.rows(jnp.asarray(0), 4, M, jnp.dtype("float64")))
    first = NoiseRows(initial, jnp.ones(4, bool))
    nothing = NoiseRows(jnp.zeros((72, M)), jnp.zeros(72, bool))
    assert_orthonormal(first.rows, 4, 1e-12)
    assert overlap(first.rows, np.ones((1, M))) < 1e-12
    initial = np.asarray(initial)
    other = Deferred(empty(jax.random.key(7), M, M), LIMIT, (first, nothing))
    other.forward(initial[:3])
    others = other.store.noise
    matrix = Deferred(empty(key, M, M), LIMIT, (first, others))
    x = initial[:3]
    for i in range(3):
        h = matrix.forward(x + function(x))
        g = matrix.transposed(h[:2] + function(h[:2]))
        x = np.concatenate([initial[i : i + 1] + np.asarray(others.rows[i : i + 1]), g])
    store = matrix.store
    assert rank(store) == (9, 6)
    for rows, count in ((Z(store), 9), (H(store), 6)):
        assert_orthonormal(rows, count, bound)
        for known in (np.ones((1, M)), first.rows, others.rows):
            assert overlap(rows, known) < bound
    # Mandatory: no component on the directions that were known when the row was drawn.
    assert overlap(Z(store)[3:6], P(store)[:2]) < 1e-10
    assert overlap(H(store)[2:4], Q(store)[:6]) < 1e-10


def test_directions_below_the_tolerance_are_dropped(key: jax.Array) -> None:
    """At tolerance 1e-6 a residual of relative second moment 1e-8 is dropped, 1e-4 is kept.

    Relative to the row it comes from, however large or small that row is.
    """
    x = normal(1, 2, 100)
    for share, count in ((1e-4, 1), (1e-2, 2)):
        for size in (1e-5, 1.0, 1e5):
            matrix = Deferred(empty(key, 100, 100), LIMIT)
            image = matrix.forward(np.stack([x[0], size * (x[0] + share * x[1])]))
            assert np.sum(matrix.store.forward) == count
            error = image[1] / size - image[0]
            assert np.sqrt(np.mean(error**2)) < 2 * share


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_rows_near_the_number_of_particles(key: jax.Array, dtype: str) -> None:
    """Rows near and beyond M: no NaN, sizes stay those of the inputs, known stays known."""
    M = 32
    matrix = Deferred(empty(key, M, M, 128, dtype), LIMIT)
    for i in range(20):
        x = normal(i, 4, M).astype(dtype)
        h = matrix.forward(x)
        g = matrix.transposed(h)
        assert np.all(np.isfinite(h))
        assert np.all(np.isfinite(g))
        assert 0.3 < np.mean(h * h) < 3
    assert rank(matrix.store) == (M, M)
    np.testing.assert_allclose(matrix.forward(x), h, rtol=0, atol=1e-3)
