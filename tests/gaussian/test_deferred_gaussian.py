"""`tplimit.gaussian.deferred` alone, against dense Gaussian matrices.

A store answers `G x / sqrt(n_in)` and `G^T y / sqrt(n_out)` without forming `G`. At finite width
(`Law(exact=True)`) two things must hold, whatever is asked in whatever order:

* *consistency*: one matrix explains all answers. Asking for the unit vectors at the end reveals
  that matrix, and every earlier answer must be its product;
* *law*: that matrix has independent N(0, 1) entries, and everything computed from the answers has
  the distribution it has for a dense matrix. Small sizes make any error of order 1/n visible.

In the limit (`exact=False`) fresh rows are zero-mean and orthonormal.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import statistics
from scipy import stats

from tplimit.gaussian import deferred
from tplimit.gaussian.deferred import Law, NoiseRows, Store

SHAPES = [(5, 5), (9, 16), (16, 9)]  # n_out, n_in
EXACT = Law(exact=True, tolerance=1e-24)
LIMIT = Law(exact=False, tolerance=1e-6)

BLOCK = 8
"""Rows per compiled query; smaller blocks are padded with zero rows, which reveal nothing."""

compiled = jax.jit(deferred.query, static_argnames="law")


pytestmark = pytest.mark.usefixtures("float64")


class Asked(NamedTuple):
    """A query and its answer; `transposed` tells which of the two products."""

    x: Any
    answer: Any
    transposed: bool


class Deferred:
    """Queries in sequence to one store, remembering all of them.

    `xp` is `numpy`, or `jax.numpy` under a transformation. `keep=0` forgets the fresh parts `H`,
    and with them the correction `P^T b` (negative control).
    """

    def __init__(
        self,
        store: Store,
        law: Law = EXACT,
        earlier: tuple[NoiseRows, ...] = (),
        keep: jax.Array | None = None,
        xp: Any = np,
    ) -> None:
        self.store, self.law, self.earlier, self.keep, self.xp = store, law, earlier, keep, xp
        self.asked: list[Asked] = []

    def forward(self, x: Any) -> Any:
        if self.keep is not None:
            kept = jnp.where(self.store.transposed, self.keep, 1)
            self.store = replace(self.store, X=kept[:, None] * self.store.X)
        image, self.store = self._query(self.store, x)
        self.asked.append(Asked(x, image, False))
        return image

    def transposed(self, y: Any) -> Any:
        image, store = self._query(self.store.T, y)
        self.store = store.T
        self.asked.append(Asked(y, image, True))
        return image

    def _query(self, store: Store, x: Any) -> tuple[Any, Store]:
        padded = self.xp.pad(x, ((0, -len(x) % BLOCK), (0, 0)))
        images = []
        for block in padded.reshape(-1, BLOCK, x.shape[1]):
            answer = compiled(store, block, law=self.law, earlier=self.earlier)
            images.append(self.xp.asarray(answer.image))
            store = answer.store
        return self.xp.concatenate(images)[: len(x)], store


class Dense:
    """The same with a matrix of independent standard normals."""

    xp = jnp

    def __init__(self, key: jax.Array, n_out: int, n_in: int) -> None:
        self.G = jax.random.normal(key, (n_out, n_in))

    def forward(self, x: jax.Array) -> jax.Array:
        return x @ self.G.T / jnp.sqrt(x.shape[1])

    def transposed(self, y: jax.Array) -> jax.Array:
        return y @ self.G / jnp.sqrt(y.shape[1])


def rank(store: Store) -> tuple[int, int]:
    """Numbers of forward and of transposed pairs."""
    return int(np.sum(store.forward)), int(np.sum(store.transposed))


def Q(store: Store) -> np.ndarray:
    return np.asarray(store.X)[np.asarray(store.forward)]


def Z(store: Store) -> np.ndarray:
    return np.asarray(store.Y)[np.asarray(store.forward)]


def P(store: Store) -> np.ndarray:
    return Q(store.T)


def H(store: Store) -> np.ndarray:
    return Z(store.T)


def empty(key: jax.Array, n_out: int, n_in: int, capacity: int = 72, dtype: Any = None) -> Store:
    return deferred.empty_store(key, n_out, n_in, capacity, jnp.dtype(dtype or "float64"))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def adaptive(matrix: Any, x: Any) -> list[Any]:
    """A network that meets its matrix four times: blocks, dependent rows, corrections.

    `x` is `(3, n_in)`. Every input from the second on depends on the answers before it, and the
    third product repeats a known row and a combination of known rows.
    """
    xp = matrix.xp
    h = matrix.forward(x)
    g = matrix.transposed(xp.tanh(h[:2]))
    mixed = xp.stack([x[1], x[0] - 2 * x[2]])
    z = matrix.forward(xp.concatenate([xp.tanh(2 * g), mixed]))
    back = matrix.transposed(xp.stack([z[0] * h[0], h[0], xp.tanh(h[0])]))
    return [h, g, z, back]


def rows_of_all_sizes(seed: int, n: int) -> np.ndarray:
    """Six rows of norms 1e-8 to 1e4, two of them nearly dependent and one dependent."""
    base = normal(seed, 4, n)
    scales = np.array([1e-8, 1e-3, 1.0, 1e4])[:, None]
    near = base[2:3] + 1e-6 * base[0:1]
    return np.concatenate([scales * base, near, 1e4 * base[0:1] - 3 * base[1:2]])


def revealed(matrix: Deferred) -> Any:
    """The whole matrix `G`, by asking for the unit vectors."""
    n_in = matrix.store.X.shape[1]
    return matrix.forward(matrix.xp.eye(n_in)).T * np.sqrt(n_in)


def assert_explained(G: np.ndarray, asked: list[Asked], tolerance: float) -> None:
    """Every answer is the product with `G`, relative to the size of each row."""
    for x, answer, transposed in asked:
        product = x @ (G if transposed else G.T) / np.sqrt(x.shape[1])
        scale = np.sqrt(np.mean(x * x, axis=1, keepdims=True))
        assert np.max(np.abs(answer - product) / np.where(scale > 0, scale, 1)) < tolerance


def inner(a: Any, b: Any) -> np.ndarray:
    a, b = np.asarray(a), np.asarray(b)
    return a @ b.T / a.shape[1]


def overlap(a: Any, b: Any) -> float:
    return float(np.abs(inner(a, b)).max())


def assert_orthonormal(rows: Any, count: int, tolerance: float) -> None:
    assert len(rows) == count
    assert np.abs(inner(rows, rows) - np.eye(count)).max() < tolerance


# One matrix explains all answers ------------------------------------------------------------------


@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_one_matrix_explains_adaptive_queries(key: jax.Array, n_out: int, n_in: int) -> None:
    matrix = Deferred(empty(key, n_out, n_in))
    adaptive(matrix, normal(1, 3, n_in))
    asked = list(matrix.asked)
    G = revealed(matrix)
    assert_explained(G, asked, 1e-11)
    # Seen from the other side it is the same matrix.
    np.testing.assert_allclose(
        matrix.transposed(np.eye(n_out)) * np.sqrt(n_out), G, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_rows_of_very_different_norm(key: jax.Array, n_out: int, n_in: int) -> None:
    """Norms 1e-8 to 1e4 in one block: each row is exact relative to its own size."""
    matrix = Deferred(empty(key, n_out, n_in))
    h = matrix.forward(rows_of_all_sizes(1, n_in))
    matrix.transposed(rows_of_all_sizes(2, n_out) + 1e-3 * np.tanh(h))
    matrix.forward(rows_of_all_sizes(3, n_in))
    asked = list(matrix.asked)
    assert_explained(revealed(matrix), asked, 1e-8)


def test_rank_deficient_blocks_reveal_their_rank(key: jax.Array) -> None:
    """Dependent, repeated and zero rows add no directions; a zero row has the image zero."""
    matrix = Deferred(empty(key, 9, 16))
    x = normal(1, 2, 16)
    mixing = np.array([[1.0, 0], [0, 1], [2, -1], [1, 0], [0, 0], [1e-5, 1e-5]])
    image = matrix.forward(mixing @ x)
    assert rank(matrix.store) == (2, 0)
    np.testing.assert_allclose(image, mixing @ image[:2], rtol=0, atol=1e-13)
    assert not np.any(image[4])
    np.testing.assert_array_equal(matrix.forward(np.zeros((3, 16))), np.zeros((3, 9)))
    assert rank(matrix.store) == (2, 0)


def test_repeated_queries_reveal_nothing(key: jax.Array) -> None:
    matrix = Deferred(empty(key, 9, 16))
    x = normal(1, 3, 16)
    first = matrix.forward(x)
    back = matrix.transposed(first)
    counts = rank(matrix.store)
    np.testing.assert_allclose(matrix.forward(x), first, rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix.transposed(-first), -back, rtol=0, atol=1e-12)
    assert rank(matrix.store) == counts == (3, 3)


@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_full_span(key: jax.Array, n_out: int, n_in: int) -> None:
    """More queries than coordinates: at most n directions, and everything stays one matrix."""
    matrix = Deferred(empty(key, n_out, n_in))
    for i in range(6):
        matrix.transposed(normal(i, 5, n_out) + np.tanh(matrix.forward(normal(10 + i, 5, n_in))))
    asked = list(matrix.asked)
    assert_explained(revealed(matrix), asked, 1e-10)
    assert_orthonormal(Q(matrix.store), n_in, 1e-12)
    assert_orthonormal(P(matrix.store), n_out, 1e-12)


def test_a_block_wider_than_the_space(key: jax.Array) -> None:
    matrix = Deferred(empty(key, 5, 5))
    matrix.forward(normal(1, BLOCK, 5))
    assert rank(matrix.store) == (5, 0)
    asked = list(matrix.asked)
    assert_explained(revealed(matrix), asked, 1e-11)


@pytest.mark.parametrize(("law", "n_out", "n_in"), [(EXACT, 9, 16), (LIMIT, 100, 100)])
def test_adjoint_identity(key: jax.Array, law: Law, n_out: int, n_in: int) -> None:
    """`<y, G x>` = `<G^T y, x>` up to the sizes of the spaces, in the limit as well."""
    matrix = Deferred(empty(key, n_out, n_in), law)
    adaptive(matrix, normal(1, 3, n_in))
    forward = [asked for asked in matrix.asked if not asked.transposed]
    transposed = [asked for asked in matrix.asked if asked.transposed]
    for x, image, _ in forward:
        for y, back, _ in transposed:
            left = y @ image.T / np.sqrt(n_out)
            right = back @ x.T / np.sqrt(n_in)
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("exact", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_float32_keeps_its_bases_orthonormal(key: jax.Array, exact: bool) -> None:
    """Nearly dependent histories, as training makes them: 40 blocks that drift slowly.

    Two rows of a block differ by 1e-2 to 1e-5 of their size, so new directions are normalised from
    small residuals; their overlap with the revealed ones must not grow by that factor.
    """
    n, eps = 200, float(np.finfo(np.float32).eps)
    law = Law(exact, (50 * eps) ** 2 if exact else 1e-6)
    matrix = Deferred(empty(key, n, n, 256, "float32"), law)
    x = normal(1, 2, n)
    for i in range(40):
        drift = normal(2 + i, 2, n)
        rows = np.concatenate([x, x + 10.0 ** -(2 + i % 4) * drift]).astype(np.float32)
        h = matrix.forward(rows)
        matrix.transposed(np.tanh(h[::3]))
        x = x + 1e-2 * drift[::-1]
    assert not np.any(np.isnan(matrix.store.X))
    assert not np.any(np.isnan(matrix.store.Y))
    r, t = rank(matrix.store)
    assert_orthonormal(Q(matrix.store), r, 1e-4)
    assert_orthonormal(P(matrix.store), t, 1e-4)
    np.testing.assert_allclose(matrix.forward(rows), h, rtol=0, atol=2e-4)


# The law ------------------------------------------------------------------------------------------

SEEDS = 4000


def measured(matrix: Any, x: jax.Array) -> jax.Array:
    """Sixteen statistics of `adaptive`: entries, inner products (with corrections), moments."""
    h, g, z, back = adaptive(matrix, x)
    return jnp.stack(
        [
            h[0, 0], g[1, 1], z[1, 2], z[3, 0], back[0, 0],
            jnp.mean(h * h), jnp.mean(g * g), jnp.mean(z * z), jnp.mean(back * back),
            jnp.mean(z[0] * jnp.tanh(h[0])), jnp.mean(z[1] * h[0]), jnp.mean(back[0] * g[0]),
            jnp.mean(z[2] * z[1]), jnp.mean(z**3), jnp.mean(z[:2] ** 4), jnp.mean(back[2] ** 4),
        ]
    )  # fmt: skip


class Samples(NamedTuple):
    """Over seeds: `measured` with and without the correction and dense, and the revealed `G`."""

    deferred: np.ndarray
    uncorrected: np.ndarray
    dense: np.ndarray
    G: np.ndarray


@pytest.fixture(
    scope="module",
    params=[
        (4, 7),
        pytest.param((5, 5), marks=pytest.mark.slow),
        pytest.param((7, 4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def samples(request: pytest.FixtureRequest) -> Samples:
    n_out, n_in = request.param
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (3, n_in))

        def run(key: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
            matrix = Deferred(empty(key, n_out, n_in, 3 * BLOCK), keep=keep, xp=jnp)
            return measured(matrix, x), revealed(matrix).ravel()

        # `lax.map`, not `vmap`: batched LAPACK calls may block all threads of jaxlib's pool.
        many = jax.jit(lambda keys, keep: jax.lax.map(lambda key: run(key, keep), keys))
        dense = jax.jit(jax.vmap(lambda key: measured(Dense(key, n_out, n_in), x)))
        one, two, three = (jax.random.split(jax.random.key(i), SEEDS) for i in range(3))
        with_correction, G = many(one, jnp.asarray(1.0))
        without, _ = many(two, jnp.asarray(0.0))
        return Samples(*map(np.asarray, (with_correction, without, dense(three), G)))


def test_revealed_entries_are_independent_normals(samples: Samples) -> None:
    """`G` revealed after adaptive queries: all first and second moments of its entries, and laws.

    For the 28 entries of the shape (4, 7): 28 means, 406 second and 28 fourth moments, threshold
    4.7 on |z| (false alarm 1e-3), and one Kolmogorov-Smirnov test of all entries pooled (1e-3).
    """
    G = samples.G
    size = G.shape[1]
    pairs = np.triu_indices(size)
    products = G[:, pairs[0]] * G[:, pairs[1]]
    z = np.concatenate(
        [
            statistics.z_score_to(G, 0.0),
            statistics.z_score_to(products, np.eye(size)[pairs]),
            statistics.z_score_to(G**4, 3.0),
        ]
    )
    assert np.abs(z).max() < statistics.threshold(z.size)
    assert stats.kstest(G.ravel(), "norm").pvalue > statistics.SUITE_FALSE_ALARM


def test_adaptive_queries_have_the_law_of_dense_matrices(samples: Samples) -> None:
    """Two-sample tests of 16 statistics over 4000 + 4000 seeds.

    Means and second moments: 32 comparisons by |z|; laws: 16 by Kolmogorov-Smirnov. False alarm
    1e-3 for each of the two groups.
    """
    one, two = samples.deferred, samples.dense
    assert np.all(np.std(two, axis=0) > 0.01)
    z = np.concatenate([statistics.z_score(one, two), statistics.z_score(one**2, two**2)])
    assert np.abs(z).max() < statistics.threshold(z.size)
    p = [statistics.ks_p_value(a, b) for a, b in zip(one.T, two.T, strict=True)]
    assert min(p) > statistics.SUITE_FALSE_ALARM / len(p)


def test_without_the_correction_the_law_is_another(samples: Samples) -> None:
    """Negative control: `P^T b` left out, the same tests fail by many standard errors."""
    assert np.abs(statistics.z_score(samples.uncorrected, samples.dense)).max() > 10


# Bookkeeping --------------------------------------------------------------------------------------


def test_capacity_grows_without_changing_anything(key: jax.Array) -> None:
    x = normal(1, 3, 16)
    large, small = Deferred(empty(key, 9, 16)), Deferred(empty(key, 9, 16, BLOCK))
    one = adaptive(large, x)
    h = small.forward(x)
    small.store = deferred.grown(small.store, 72)
    assert small.store.capacity == 72
    g = small.transposed(np.tanh(h[:2]))
    np.testing.assert_allclose(h, one[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(g, one[1], rtol=0, atol=1e-13)
    assert deferred.grown(small.store, 4) is small.store


def test_queries_are_pure(key: jax.Array) -> None:
    """The same question to the same store has the same answer; the store is left as it was."""
    store = empty(key, 9, 16)
    x = normal(1, BLOCK, 16)
    one, two = compiled(store, x, law=EXACT, earlier=()), compiled(store, x, law=EXACT, earlier=())
    np.testing.assert_array_equal(one.image, two.image)
    assert not np.any(np.asarray(store.X))
    assert rank(one.store) == (BLOCK, 0)
    assert rank(store) == (0, 0)


def test_coordinates_and_core_product(key: jax.Array) -> None:
    """`x = coordinates^T Q`, and `(P^T K Q) x / n_in` is the product with the dense update."""
    x = normal(1, BLOCK, 16)
    answer = compiled(empty(key, 9, 16), x, law=EXACT, earlier=())
    np.testing.assert_allclose(answer.coordinates @ answer.store.X, x, rtol=0, atol=1e-12)
    store = compiled(answer.store.T, np.tanh(answer.image), law=EXACT, earlier=()).store.T
    kinds = np.outer(store.transposed, store.forward)
    core, other = kinds * normal(2, 72, 72), normal(3, 5, 16)
    update = np.asarray(store.Y).T @ core @ np.asarray(store.X) / 16
    product = deferred.core_product(jnp.asarray(core), store, jnp.asarray(other))
    np.testing.assert_allclose(product, other @ update.T, rtol=0, atol=1e-11)
