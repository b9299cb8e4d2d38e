"""`tp.particles`: entries at finite width, draws of the limiting law, jointly; what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import networks, statistics

import tplimit as tp

n, twice = tp.Width("n"), tp.Width("m", ratio=2)
THETA = {
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
    "V": tp.normal((n, twice), std=n**-0.5),
    "v": tp.normal((n,)),
    "c": tp.full((n,), 0.5),
    "zero": tp.full((n,), 0.0),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [-0.2, 0.8, 1.1]])
M = 512


def sampled(width, samples=M, key=0, **options):
    return tp.sample(THETA, jax.random.key(key), width=width, samples=samples, **options)


def everything(theta):
    h = X @ theta["U"]
    y = jnp.tanh(h) @ theta["W"]
    return {
        "h": h,
        "y": y,
        "wide": y @ theta["V"],
        "mask": y > 0,
        "count": jnp.where(y > 0, 2, 1),
        "zero": (theta["zero"], y * 0),
        "same": theta["c"],
        "ones": jnp.ones(y.shape[-1]),
        "mean": jnp.mean(y**2, axis=-1),
        "number": 3.0,
    }


def test_at_finite_width_they_are_the_entries():
    theta = sampled(16)
    found, exact = tp.particles(everything)(theta), everything(theta)
    assert jax.tree.structure(found) == jax.tree.structure(exact)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert isinstance(one, jax.Array)
        np.testing.assert_array_equal(one, two)
    # The power of the width is whatever it is there.
    grows = lambda t: t["v"] * t["v"].shape[0]
    np.testing.assert_array_equal(tp.particles(grows)(theta), grows(theta))


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(M)], ids=str)
def test_shapes_dtypes_and_averages(width):
    theta = sampled(width)
    found = tp.particles(everything)(theta)
    dense = jax.eval_shape(everything, sampled(M))
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(dense), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert found["wide"].shape == (2, 2 * M)
    np.testing.assert_array_equal(found["zero"][1], 0)
    np.testing.assert_array_equal(found["same"], 0.5)
    # Averages over the particles are those of tp.limit: of one call, and of another.
    np.testing.assert_allclose(np.mean(found["y"] ** 2, axis=-1), found["mean"], rtol=1e-5)
    alone = tp.limit(lambda t: everything(t)["mean"])(theta)
    np.testing.assert_allclose(np.mean(found["y"] ** 2, axis=-1), alone, rtol=1e-5)


def test_one_index_is_one_unit_at_deferred_width():
    """All functions of one unit agree: gates, sums, products, before and after a matrix."""

    def units(theta):
        h = X @ theta["U"]
        y = jnp.tanh(h) @ theta["W"]
        return h, y, h * y, y > 0, jnp.stack([h[0], y[1]])

    for width in (tp.Deferred(64), tp.inf):
        h, y, product, mask, both = tp.particles(units)(sampled(width))
        np.testing.assert_allclose(product, h * y, rtol=1e-6)
        np.testing.assert_array_equal(mask, y > 0)
        np.testing.assert_array_equal(both, jnp.stack([h[0], y[1]]))


# --- laws, against networks

LEVELS = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
STEPS = list(zip(*networks.regression(steps=3), strict=True))
WIDTH, SEEDS, REPLICATES = 512, 48, 6


def preactivations(theta, phi):
    h = jnp.asarray(networks.POINTS[:2]) @ theta["U"] / np.sqrt(3.0)
    return phi(h) @ theta["W"][0]


def statistics_of(before, after):
    """Quantiles of the preactivations, and correlations of those of one unit, before and after."""
    rows = np.concatenate([before, after, after - before])
    quantiles = np.quantile(rows, LEVELS, axis=1)
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    return np.concatenate([quantiles.ravel(), correlations])


def runs_at(activation, width, replicates):
    net, phi = networks.mup(activation, hidden=2, eta=1.5), networks.ACTIVATIONS[activation]
    run = tp.train(
        net.step, net.theta, STEPS, width=width, key=jax.random.key(3), replicates=replicates,
        samples=2**12, keep=[0, -1], progress=False,
    )  # fmt: skip
    both = tp.particles(lambda a, b: (preactivations(a, phi), preactivations(b, phi)))
    pairs = zip(run.snapshots[0], run.states, strict=True)
    return np.array([statistics_of(*map(np.asarray, both(*pair))) for pair in pairs])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_joint_law_of_trained_preactivations(activation):
    """False-alarm rate 1e-3, and a bias of 6/n of the size of each statistic is allowed for."""
    limit = runs_at(activation, tp.inf, REPLICATES)
    finite = runs_at(activation, WIDTH, SEEDS)
    error = np.hypot(statistics.standard_error(limit), statistics.standard_error(finite))
    difference = np.abs(limit.mean(axis=0) - finite.mean(axis=0))
    allowed = statistics.threshold(difference.size, degrees=REPLICATES - 1) * error
    size = np.abs(finite.mean(axis=0)) + 1
    assert np.all(difference <= allowed + 6 / WIDTH * size)
    # The comparison sees something: training moves the law, and units keep their identity.
    moved = np.abs(limit.mean(axis=0)[:2] - limit.mean(axis=0)[2:4])
    assert np.max(moved) > 0.05
    assert np.median(error) < 0.02


def test_units_of_one_layer_are_a_pair_and_of_two_layers_are_not():
    """The preactivations of a layer for x and -x are opposite; those of layers have no pairs."""

    def layers(theta):
        h = X[0] @ theta["U"]
        return h, -X[0] @ theta["U"], jnp.tanh(h) @ theta["W"]

    h, opposite, y = (np.asarray(z) for z in tp.particles(layers)(sampled(tp.inf, 2**14)))
    np.testing.assert_allclose(h, -opposite)
    assert abs(np.corrcoef(h, y)[0, 1]) < 0.04
    assert h.std() == pytest.approx(float(jnp.linalg.norm(X[0])), rel=1e-3)


# --- powers of the width


def one_step(theta, scale=lambda n: n**0.5):
    """One step in the NTK parameterization, h moves by -(f - y) v φ'(h) |x|² / sqrt(n)."""
    x = X[0]
    n = theta["v"].shape[0]
    f = lambda U: theta["v"] @ jnp.tanh(x @ U) / n**0.5
    gradient = jax.grad(lambda U: 0.5 * (f(U) - 1.0) ** 2)(theta["U"])
    h = x @ theta["U"]
    moved = scale(n) * (x @ (theta["U"] - gradient) - h)
    return f(theta["U"]), h, theta["v"], moved


def test_coefficients_of_what_vanishes():
    """Features of a kernel regime move by n^-1/2: exact, unit by unit, with the random f."""
    f, h, v, moved = tp.particles(one_step)(sampled(tp.inf))
    slope = 1 / np.cosh(h) ** 2
    exact = -(f - 1) * v * slope * float(jnp.sum(X[0] ** 2))
    np.testing.assert_allclose(moved, exact, rtol=1e-3, atol=1e-4)
    assert abs(f) > 1e-3


def fails(kind, function, *texts, width=tp.inf):
    with pytest.raises(kind) as caught:
        tp.particles(function)(sampled(width))
    assert caught.type is kind
    for text in texts:
        assert text in str(caught.value)


def test_what_vanishes_is_named_with_its_power():
    texts = "output[3] is of order n^-1/2 at most: its", "return x * x.shape[0] ** (1/2)", __file__
    fails(tp.LimitError, lambda t: one_step(t, lambda n: 1.0), *texts)
    stacked = lambda t: {"a": jnp.stack([t["v"], t["v"] / t["v"].shape[0]])}
    texts = "output['a'] is of order n^-1 at most at some indices", "return x * x.shape[1] instead"
    fails(tp.LimitError, stacked, *texts)


def test_what_grows_is_named_with_its_power():
    texts = "output['b'] grows like n^3/2", "return x / x.shape[1] ** (3/2)", __file__
    fails(tp.DivergenceError, lambda t: {"b": X @ t["U"] * t["v"].shape[0] ** 1.5}, *texts)
    # The advice is right.
    scaled = lambda t: (lambda x: x / x.shape[1] ** (3 / 2))(X @ t["U"] * t["v"].shape[0] ** 1.5)
    np.testing.assert_allclose(
        tp.particles(scaled)(sampled(tp.inf)), tp.particles(lambda t: X @ t["U"])(sampled(tp.inf)),
        rtol=1e-5,
    )  # fmt: skip


def test_what_is_not_known_is_refused():
    """Terms that cancel, and the next ones do too."""

    def cancels(theta):
        y = jnp.tanh(X[0] @ theta["U"]) @ theta["W"]
        return (y - jax.nn.relu(y) + jax.nn.relu(-y)) * y.shape[0] ** 1.5

    fails(tp.CancellationError, cancels, "output is not known to order one", "of order n^1/2")


def test_more_terms_decide_on_sums_that_vanish():
    """sum(v) / sqrt(n) is one random number, which no single term knows."""
    product = lambda t: (jnp.sum(t["v"]) / t["v"].shape[0] ** 0.5 * t["c"], t["c"])
    found = [tp.particles(product)(sampled(tp.inf, key=key))[0] for key in range(24)]
    assert all(np.ptp(one) < 1e-5 for one in found)
    drawn = 2 * np.array([one[0] for one in found])
    # Chi-square with 24 degrees of freedom; false alarm 1e-4.
    assert 6.0 < np.sum(drawn**2) < 60.0


def test_matrices_between_widths_have_none():
    for width in (tp.inf, tp.Deferred(16)):
        texts = "output[0] is a matrix between widths, float32[n,n]", "return W @ x"
        fails(tp.UnsupportedOperationError, lambda t: [t["W"]], *texts, width=width)
    assert tp.particles(lambda t: t["W"])(sampled(16)).shape == (16, 16)


def test_units_of_smaller_order_are_zero():
    """Dead units, gates, masks: the limit of a single coordinate beside those of order one."""
    gate = lambda t: jnp.where(t["v"] > 0, t["v"], t["v"] / t["v"].shape[0])
    v, gated, relu = tp.particles(lambda t: (t["v"], gate(t), jax.nn.relu(t["v"])))(sampled(tp.inf))
    np.testing.assert_allclose(gated, np.maximum(v, 0))
    np.testing.assert_array_equal(relu, np.maximum(v, 0))
    assert np.mean(relu == 0) == pytest.approx(0.5, abs=0.01)


def test_saturated_units_are_signs():
    v, signs = tp.particles(lambda t: (t["v"], jnp.tanh(t["v"] * t["v"].shape[0])))(sampled(tp.inf))
    np.testing.assert_array_equal(signs, np.sign(v))


def test_outputs_without_a_width_are_those_of_limit():
    with pytest.raises(tp.DivergenceError, match="An output grows like n"):
        tp.particles(lambda t: (t["v"], jnp.sum(t["v"] ** 2)))(sampled(tp.inf))
    small = tp.particles(lambda t: jnp.mean(t["v"] ** 2) / t["v"].shape[0])(sampled(tp.inf))
    assert small == 0


def test_several_terms_give_the_leading_ones():
    """With two terms kept the particles are those of one; the second is asked for by its power."""
    one, two = (tp.particles(everything)(sampled(tp.inf, terms=k)) for k in (1, 2))
    np.testing.assert_allclose(one["h"], two["h"], rtol=1e-6)
    for k in (1, 2):
        _, _, v, moved = tp.particles(one_step)(sampled(tp.inf, terms=k))
        assert np.corrcoef(np.abs(v), np.abs(moved))[0, 1] > 0.3


def test_wrong_arguments():
    with pytest.raises(TypeError, match="function=3 is no function"):
        tp.particles(3)
    with pytest.raises(tp.LimitError, match="only declared"):
        tp.particles(lambda t: t["v"])(THETA)
    with pytest.raises(TypeError, match="no array"):
        tp.particles(lambda t: {"a": "x"})(sampled(16))
    with pytest.raises(TypeError, match="no array"):
        tp.particles(lambda t: {"a": "x"})(sampled(tp.inf))
