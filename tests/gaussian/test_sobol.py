"""Sobol' noise: the points are scipy's, rows are independent standard normals, nothing is shared.

A row of Sobol' noise is a permutation of one stratified sample, so that its own moments are far
better than random; what must stay random is the relation between rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import statistics
from scipy import stats
from scipy.stats import qmc

import tplimit as tp
from tplimit.gaussian import sobol
from tplimit.gaussian.bank import Bank, merged
from tplimit.gaussian.kinds import KINDS, Sobol, Stream

M = 2**10
DTYPE = jnp.dtype("float32")


def source(seed: int, first: int = 0, order_seed: int | None = 7) -> Stream:
    order = (
        jnp.arange(M, dtype=jnp.uint32)
        if order_seed is None
        else sobol.order(jax.random.key(order_seed), M)
    )
    table = jnp.asarray(sobol.directions(64, sobol.digits(M)))
    return Stream(jax.random.key(seed), Sobol(table, (order,), (M,)), first)


def rows(stream: Stream, count: int, start: int = 0, size: int = M) -> np.ndarray:
    return np.asarray(stream.rows(jnp.asarray(start), count, size, DTYPE), float)


def test_direction_numbers_are_those_of_scipy() -> None:
    """All points made from the direction numbers are the points of `scipy.stats.qmc.Sobol`."""
    table = sobol.directions(16, 8)
    index = np.arange(256)
    digits = np.zeros((256, 16), np.uint32)
    for k in range(8):
        digits ^= (index >> k & 1).astype(np.uint32)[:, None] * table[:, k]
    known = qmc.Sobol(16, scramble=False, bits=32).random(256)
    assert set(map(tuple, digits / 2.0**32)) == set(map(tuple, known))


def test_a_row_is_stratified_and_normal() -> None:
    """Each of the M cells of equal probability holds one point; a row passes every moment."""
    z = rows(source(1), 8)
    cells = np.floor(stats.norm.cdf(z) * M).astype(int)
    assert all(sorted(row) == list(range(M)) for row in cells)
    assert np.abs(z.mean(axis=1)).max() < 2e-3  # 0.03 for random rows
    assert np.abs((z**2).mean(axis=1) - 1).max() < 0.02
    assert np.abs((z**4).mean(axis=1) - 3).max() < 0.3


def test_one_particle_over_seeds_is_standard_normal() -> None:
    """The randomisation makes every single point uniform: 2000 seeds, Kolmogorov-Smirnov."""
    keys = jax.random.split(jax.random.key(3), 2000)
    table = jnp.asarray(sobol.directions(64, sobol.digits(M)))

    def one(key: jax.Array) -> jax.Array:
        points = sobol.Points(table, jnp.arange(4, dtype=jnp.uint32))
        return points.normals(jax.random.split(key, 2), jnp.asarray([0, 9]), DTYPE)[:, 3]

    z = np.asarray(jax.jit(jax.vmap(one))(keys), float)
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > statistics.SUITE_FALSE_ALARM / 3
    assert abs(statistics.z_score_to(z[:, 0] * z[:, 1], 0.0)) < statistics.threshold(3)


def dependence(pairs: Callable[[int], tuple[np.ndarray, np.ndarray]], seeds: int) -> float:
    """Spread over seeds of the average of a² b², in units of that for independent rows.

    Its mean is 1 for any two scrambled rows; that it is near 1 in every single draw is what
    independence of the rows of one draw means. For independent normals Var a² b² = 8.
    """
    means = [np.mean(a**2 * b**2) for a, b in map(pairs, range(seeds))]
    size = len(pairs(0)[0])
    return float(np.std(means) / np.sqrt(8 / size))


@pytest.mark.slow
def test_rows_are_independent_and_shared_coordinates_would_be_seen() -> None:
    """40 seeds: a spread of at most 1.5 in three relations; 3 and more with one coordinate twice.

    The standard deviation of the spread is about 0.13 (0.2 with the heavy tail of a² b²).
    """

    def neighbours(seed: int) -> tuple[np.ndarray, np.ndarray]:
        z = rows(source(seed), 2)
        return z[0], z[1]

    def same_coordinate(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return rows(source(seed), 1)[0], rows(source(seed + 1000), 1)[0]

    def other_order(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return rows(source(seed), 1)[0], rows(source(seed + 1000, order_seed=seed + 9), 1)[0]

    def halves(seed: int) -> tuple[np.ndarray, np.ndarray]:
        z = rows(source(seed, order_seed=seed), 1)[0]
        return z[: M // 2], z[M // 2 :]

    for relation in (neighbours, other_order, halves):
        assert dependence(relation, 40) < 1.5
    assert dependence(same_coordinate, 40) > 3


def test_halves_of_an_unordered_row_are_tied() -> None:
    """Negative control: without the random order, halves of a row differ by one digital shift."""
    z = rows(source(5, order_seed=None), 1)[0]
    digits = np.round(stats.norm.cdf(z) * 2**12).astype(int)
    shifts = digits[: M // 2] ^ digits[M // 2 :]
    assert len(set(shifts >> 3)) < 8


def network(n: tp.Width) -> dict[str, object]:
    return {
        "U": tp.normal((3, n)),
        "W": tp.normal((n, n), std=n**-0.5),
        "V": tp.normal((2 * n, n), std=n**-0.5),
        "v": tp.normal((n,)),
    }


def bank_of(seed: int, samples: int = 64) -> Bank:
    theta = tp.sample(network(tp.Width("n")), jax.random.key(seed), width=tp.inf, samples=samples)
    return theta["W"]._revealed.bank.grown(16)


def coordinates(bank: Bank, capacity: int) -> list[int]:
    streams = [bank.stream(i, side) for i in range(len(bank.stores)) for side in (False, True)]
    return [s.first + s.stride * row for s in streams for row in range(capacity)]


def test_no_two_rows_share_a_coordinate() -> None:
    """Rows of all matrices and sides, and initial vectors, have coordinates of their own."""
    bank = bank_of(0)
    found = [*range(bank.initial), *coordinates(bank, 16)]
    assert len(set(found)) == len(found)
    assert isinstance(bank.noise, Sobol) and bank.noise.directions is not None
    assert max(found) < bank.noise.directions.shape[0]


def test_banks_that_are_joined_get_new_orders() -> None:
    """Two samples have used the same coordinates; what is drawn later is tied to neither."""
    one, two = bank_of(0, 1024), bank_of(1, 1024)
    whole, _ = merged([one, two])
    kinds = [bank.noise for bank in (whole, one, two)]
    assert all(isinstance(kind, Sobol) and kind.lengths == (1024, 2048) for kind in kinds)
    for order, *old in zip(*(kind.orders for kind in kinds), strict=True):
        assert sorted(np.asarray(order)) == list(range(len(order)))
        for before in old:
            assert np.mean(np.asarray(order) == np.asarray(before)) < 0.2


def test_rows_beyond_the_known_coordinates_are_pseudo_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sobol, "MOST", 64)
    z = rows(source(2, first=62), 4)
    cells = [len(set(np.floor(stats.norm.cdf(row) * M).astype(int))) for row in z]
    assert cells[:2] == [M, M]  # stratified
    assert all(count < 0.7 * M for count in cells[2:])  # random: a share 1 - 1/e of the cells
    assert stats.kstest(z[2:].ravel(), "norm").pvalue > statistics.SUITE_FALSE_ALARM


@pytest.mark.slow
def test_samples_that_are_no_power_of_two_work_and_say_what_they_cost() -> None:
    n = tp.Width("n")
    theta = {"v": tp.normal((n,)), "W": tp.normal((n, n), std=n**-0.5)}
    with pytest.warns(tp.LimitWarning, match="samples=1000 is no power of two.*Use 512 or 1024"):
        state = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=1000)
    value = tp.limit(lambda t: jnp.mean(jnp.tanh(t["v"] @ t["W"]) ** 2))(state)
    assert abs(float(value) - 0.394) < 0.02
    tp.sample(theta, jax.random.key(0), width=tp.inf, samples=1000, noise="random")


@pytest.mark.slow
def test_sobol_noise_is_more_precise_than_random() -> None:
    """E tanh(W tanh(v))² over 24 keys: the spread is at least a third smaller, means agree."""
    n = tp.Width("n")
    theta = {"v": tp.normal((n,)), "W": tp.normal((n, n), std=n**-0.5)}
    size = tp.limit(lambda t: jnp.mean(jnp.tanh(jnp.tanh(t["v"]) @ t["W"]) ** 2))
    values = {
        kind: [
            float(size(tp.sample(theta, key, width=tp.inf, samples=1024, noise=kind)))
            for key in jax.random.split(jax.random.key(1), 24)
        ]
        for kind in KINDS
    }
    assert np.std(values["sobol"]) < 0.67 * np.std(values["random"])
    assert abs(statistics.z_score(values["sobol"], values["random"])) < 4
