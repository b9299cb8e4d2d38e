"""Places among finitely many numbers along a width: bins, histograms, sums by segments, tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tplimit as tp

N = tp.Width("n")
THETA = {"v": tp.normal((N,)), "w": tp.normal((N,)), "U": tp.normal((2, N))}
EDGES = jnp.array([-1.0, 0.5, 1.0])
SHARES = np.diff([0, *stats.norm.cdf(EDGES), 1])


@pytest.fixture(scope="module")
def limit():
    return tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=2**12)


def width(t):
    return t["v"].shape[0]


def bins(t):
    return jnp.digitize(t["v"], EDGES)


# --- sums into bins


def sums(t):
    n = width(t)
    ones = jnp.ones(n)
    return {
        "histogram": jnp.histogram(t["v"], bins=EDGES)[0] / n,
        "density": jnp.histogram(t["v"], bins=EDGES, density=True)[0],
        "range": jnp.histogram(t["v"], bins=4, range=(-2, 2))[0] / n,
        "weighted": jnp.histogram(t["v"], bins=EDGES, weights=t["v"] ** 2)[0] / n,
        "bincount": jnp.bincount(bins(t), length=4) / n,
        "segments": jax.ops.segment_sum(t["U"].T ** 2, bins(t), num_segments=4) / n,
        "counts": jnp.zeros(4).at[bins(t)].add(ones) / n,
        "two": jnp.histogram2d(t["v"], t["w"], bins=[EDGES, EDGES])[0] / n,
        "dropped": jnp.zeros(2).at[bins(t)].add(ones, mode="drop") / n,
        "clipped": jnp.zeros(2).at[bins(t)].add(ones, mode="clip") / n,
        "each row": jax.vmap(lambda row: jnp.histogram(row, bins=EDGES)[0])(t["U"]) / n,
        "columns": jnp.zeros((2, 4)).at[:, bins(t)].add(t["U"] ** 2) / n,
        "beside": jnp.arange(4.0).at[bins(t)].add(ones / n),
    }


def test_sums_into_bins(limit):
    """Shares and truncated moments of a normal law, and products of them."""
    found = tp.limit(sums)(limit)
    squares = np.diff(stats.norm.cdf(EDGES) - EDGES * stats.norm.pdf(EDGES))
    inner = SHARES[1:3]
    expected = {
        "histogram": inner,
        "density": inner / inner.sum() / np.diff(EDGES),
        "range": np.diff(stats.norm.cdf([-2, -1, 0, 1, 2])),
        "weighted": squares,
        "bincount": SHARES,
        "segments": np.stack([SHARES] * 2, 1),
        "counts": SHARES,
        "two": np.outer(inner, inner),
        "dropped": SHARES[:2],
        "clipped": [SHARES[0], 1 - SHARES[0]],
        "each row": np.stack([inner] * 2),
        "columns": np.stack([SHARES] * 2),
        "beside": np.arange(4) + SHARES,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=0.01, err_msg=name)


def test_counts_are_of_the_order_of_the_width(limit):
    counts = tp.leading(lambda t: jnp.histogram(t["v"], bins=EDGES)[0])(limit)
    assert np.all(counts.exponent == 1)
    np.testing.assert_allclose(counts.coefficient, SHARES[1:3], atol=0.005)
    assert np.all(np.abs(counts.coefficient - SHARES[1:3]) < 5 * counts.stderr)
    with pytest.raises(tp.DivergenceError, match=r"n\^1"):
        tp.limit(lambda t: jnp.histogram(t["v"], bins=EDGES)[0])(limit)


def test_shares_fluctuate_as_those_of_networks():
    """n Cov of the shares in a histogram is that of a multinomial law, diag(p) - p p'. Of
    400 keys, each entry within 5 of the errors of a covariance of normal variables."""
    function = tp.series(lambda t: jnp.histogram(t["v"], bins=EDGES)[0] / width(t))
    draws = []
    for key in range(400):
        theta = tp.sample(THETA, jax.random.key(key), width=tp.inf, samples=512)
        (_, _), (exponent, fluctuation) = function(theta).terms
        assert exponent == -0.5
        draws.append(fluctuation)
    p = SHARES[1:3]
    expected = np.diag(p) - np.outer(p, p)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) + expected**2)
    assert np.all(np.abs(np.cov(np.array(draws).T) - expected) < 5 * scale / 400**0.5)


def test_networks_count_what_the_limit_says(limit):
    """64 networks of width 1000: means of the shares within five standard errors."""
    found = tp.limit(sums)(limit)
    keys = jax.random.split(jax.random.key(5), 64)
    networks = jax.vmap(lambda key: sums(tp.sample(THETA, key, width=1000)))(keys)
    for name, values in networks.items():
        error = np.std(values, axis=0, ddof=1) / 8 + 0.002  # and of the limit
        assert np.all(np.abs(np.mean(values, axis=0) - found[name]) < 5 * error), name


def test_derivatives_of_tables_are_sums_into_bins(limit):
    """d/d table_k of the mean of table[bin of v] is the share of bin k."""
    slope = lambda t: jax.grad(lambda table: jnp.mean(table[bins(t)] * t["w"] ** 2))(jnp.ones(4))
    np.testing.assert_allclose(tp.limit(slope)(limit), SHARES, atol=0.01)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda t: jnp.zeros(4).at[bins(t)].set(t["v"]), tp.NoLimitError, "the last one stays"),
        (lambda t: jnp.zeros(4).at[bins(t)].max(t["v"]), tp.UnsupportedOperationError, "no rule"),
        (lambda t: jnp.histogram(t["v"], bins=4)[0], tp.NoLimitError, "most extreme"),
        (lambda t: jnp.mean(t["v"][bins(t)]), tp.NoLimitError, "Single coordinates"),
    ],
)
def test_what_has_no_limit_names_the_line(limit, function, error, text):
    with pytest.raises(error, match=text) as found:
        tp.limit(function)(limit)
    assert found.value.location.file == __file__


# --- places, and functions with knots


def scaled(t, power):
    return t["v"] * width(t) ** power


def places(t):
    two = jnp.array([0.0, 1.0])
    return {
        "left": jnp.searchsorted(EDGES, t["v"]) * t["v"],
        "right": jnp.searchsorted(EDGES, t["v"], side="right") * t["v"],
        "all": jnp.searchsorted(EDGES, t["v"], method="compare_all") * t["v"],
        "sort": jnp.searchsorted(EDGES, t["v"], method="sort") * t["v"],
        "digitize": bins(t) * t["v"],
        "falling": (3 - jnp.digitize(t["v"], EDGES[::-1])) * t["v"],
        "rows": jnp.digitize(t["U"], EDGES) * t["U"],
        "dead": 1.0 * jnp.searchsorted(two, jax.nn.relu(t["v"])),
        "dead right": 1.0 * jnp.searchsorted(two, jax.nn.relu(t["v"]), side="right"),
        "vanishing": 1.0 * jnp.searchsorted(two, scaled(t, -0.5)),
        "beside": 1.0 * jnp.searchsorted(two, 1 + scaled(t, -0.5)),
        "growing": 1.0 * jnp.searchsorted(two, scaled(t, 0.5)),
    }


def test_places_are_decided_by_comparisons(limit):
    """E[place(v) v] is the sum of the densities at the edges; what is at an edge in the limit is
    decided by its next term."""
    found = tp.limit(lambda t: jax.tree.map(lambda a: jnp.mean(a, -1), places(t)))(limit)
    density = stats.norm.pdf(EDGES).sum()
    above = 1 - stats.norm.cdf(1)
    expected = dict.fromkeys(["left", "right", "all", "sort", "digitize", "falling"], density)
    expected |= {"rows": [density, density], "dead": 0.5 + above, "dead right": 1 + above}
    expected |= {"vanishing": 0.5, "beside": 1.5, "growing": 1.0}
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=0.01, err_msg=name)


def test_a_tie_within_the_sampling_error_is_refused(limit):
    """Units beside an edge by a median that is 0 in truth: particles say nothing about the side."""
    tied = lambda t: jnp.mean(jnp.searchsorted(EDGES, 1 + t["v"] * jnp.median(t["w"])) * 1.0)
    with pytest.raises(tp.CancellationError, match="A comparison is decided by terms that vanish"):
        tp.leading(tied)(limit)


KNOTS = jnp.array([0.0, 1.0, 2.0])


def interpolations(t):
    tent = lambda x: jnp.interp(x, KNOTS, jnp.array([0.0, 1.0, 0.0]))
    ramp = lambda x: jnp.interp(x, KNOTS - 1, KNOTS - 1)
    return {
        "inside": jnp.interp(t["v"], EDGES, EDGES**2) * t["v"],
        "tent at its knot": tent(1 + scaled(t, -0.5)),
        "tent on its side": (tent(0.5 + scaled(t, -0.5)) - 0.5) * t["v"] * width(t) ** 0.5,
        "growing": ramp(scaled(t, 1.0)) * t["v"],
        "vanishing": ramp(scaled(t, -1.0)) * t["v"] * width(t),
        "computed heights": jnp.interp(t["v"], EDGES, EDGES * jnp.mean(t["w"] ** 2)) * t["v"],
        "computed knots": jnp.interp(t["v"], EDGES * jnp.mean(t["w"] ** 2), EDGES) * t["v"],
    }


def test_interpolations_are_continuous_functions_of_coordinates(limit):
    """Piecewise linear, with their values at the end knots beyond: v' E[f'(v)] and powers of n."""
    found = tp.limit(lambda t: jax.tree.map(jnp.mean, interpolations(t)))(limit)
    slopes = np.diff(EDGES**2) / np.diff(EDGES)
    expected = {
        "inside": slopes @ SHARES[1:3],  # by Stein's lemma
        "tent at its knot": 1,
        "tent on its side": 1,
        "growing": (2 / np.pi) ** 0.5,
        "vanishing": 1,
        "computed heights": SHARES[1:3].sum(),
        "computed knots": SHARES[1:3].sum(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=0.015, err_msg=name)


def test_the_next_term_at_a_knot(limit):
    """E[1 - |v| n^-1/2] = 1 - (2/π)^1/2 n^-1/2, beside fluctuations, which are of lower order."""
    series = tp.series(lambda t: jnp.mean(interpolations(t)["tent at its knot"]))(limit)
    (zero, one), (half, coefficient) = series.terms
    assert (zero, half) == (0, -0.5)
    np.testing.assert_allclose([one, coefficient], [1, -((2 / np.pi) ** 0.5)], atol=0.01)
