"""`tp.Deferred(n)`: networks of true width n whose matrices are never formed, after training.

They must have the distribution of ordinary networks of width n: of losses and outputs, with their
fluctuations, at n = 16, where an error of order 1/n would be seen, and at n = 256. Programs with
one hidden matrix (`networks`): used once, used forwards and backwards (tied weights), used at
every time (recurrent), always with its gradient and after updates.

Two-sample tests between independent seeds of both kinds; of each network the losses of three
steps and, after the last, the outputs at two points: 5 numbers. Compared are 5 means, 5 variances
and 15 second central moments (25 values of |z|, threshold 4.1) and 5 laws by Kolmogorov-Smirnov,
with a false alarm of 1e-3 for each of the two groups.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import statistics
from oracles.networks import (
    POINTS,
    Data,
    Network,
    dense_runs,
    limit_runs,
    mup,
    recurrent,
    regression,
    tied,
)

import tplimit as tp

Array = np.ndarray

NETWORKS = {"once": mup("tanh", 2), "tied": tied(), "recurrent": recurrent()}
SQUARE = regression(steps=3, batch=2), POINTS[:2]
random = np.random.default_rng(0)
SERIES = (  # three times per input
    (
        random.standard_normal((3, 2, 3, 3)).astype(np.float32),
        np.array([[1, -1], [1, -1], [-1, 1]], np.float32),
    ),
    random.standard_normal((2, 3, 3)).astype(np.float32),
)


def deferred(network: Network, data: Data, points: Array, n: int, seeds: int) -> Array:
    """(seeds, 5): the losses and the last outputs, observed in one call after the last step."""
    step, predict = tp.limit(network.step), tp.limit(network.predict)
    rows = []
    for seed in range(seeds):
        state = tp.sample(network.theta, jax.random.key(seed), width=tp.Deferred(n))
        losses = []
        for batch in zip(*data, strict=True):
            state, loss = step(state, batch)
            losses.append(loss)
        rows.append(np.array([*losses, *predict(state, points)], float))
    return np.array(rows)


def assert_same_law(one: Array, two: Array) -> None:
    columns = one.shape[1]
    covariance = statistics.covariance_z_score(one, two)[np.triu_indices(columns)]
    z = np.concatenate(
        [statistics.z_score(one, two), statistics.variance_z_score(one, two), covariance]
    )
    assert np.abs(z).max() < statistics.threshold(z.size)
    p = [statistics.ks_p_value(a, b) for a, b in zip(one.T, two.T, strict=True)]
    assert min(p) > statistics.SUITE_FALSE_ALARM / columns


@pytest.mark.parametrize(
    ("kind", "n", "seeds"),
    [
        pytest.param("tied", 16, 400, marks=pytest.mark.slow),
        *(
            pytest.param(kind, n, seeds, marks=pytest.mark.slow)
            for kind in NETWORKS
            for n, seeds in ((16, 3000), (256, 800))
        ),
    ],
)
def test_deferred_networks_have_the_law_of_dense_ones(kind: str, n: int, seeds: int) -> None:
    network = NETWORKS[kind]
    data, points = SERIES if kind == "recurrent" else SQUARE
    one = deferred(network, data, points, n, seeds)
    dense = dense_runs(network, data, {n: 2 * seeds}, points)[n]
    two = np.hstack([dense.losses, dense.f[:, -1]])
    assert np.all(two.std(axis=0) > 1e-3)
    assert_same_law(one, two)


@pytest.mark.slow
def test_a_wrong_width_would_be_seen() -> None:
    """Negative control: `tp.Deferred(224)` against dense width 256 fails the same test."""
    network, (data, points) = NETWORKS["tied"], SQUARE
    one = deferred(network, data, points, 128, 800)
    dense = dense_runs(network, data, {256: 1600}, points)[256]
    with pytest.raises(AssertionError):
        assert_same_law(one, np.hstack([dense.losses, dense.f[:, -1]]))


@pytest.mark.slow
def test_a_deferred_network_is_one_network() -> None:
    """Calls on one state see one network: repeated observations are equal, and training goes on."""
    network, (data, points) = NETWORKS["tied"], SQUARE
    state = tp.sample(network.theta, jax.random.key(0), width=tp.Deferred(64))
    predict = tp.limit(lambda theta, x: (theta, network.predict(theta, x)))
    state, first = predict(state, points)
    state, again = predict(state, points[::-1])
    np.testing.assert_allclose(again[::-1], first, rtol=0, atol=1e-6)
    state, _ = tp.limit(network.step)(state, jax.tree.map(lambda b: b[0], data))
    assert np.abs(tp.limit(network.predict)(state, points) - first).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "recurrent"])
def test_limits_of_networks_that_use_a_matrix_twice(kind: str) -> None:
    """At `tp.inf`: corrections within one forward pass. Fit `f + b/n`, 8 or 6 comparisons."""
    network = NETWORKS[kind]
    data, points = SERIES if kind == "recurrent" else SQUARE
    limit = limit_runs(network, data, replicates=16, samples=2**15, points=points).f
    runs = dense_runs(network, data, {128: 512, 256: 512, 512: 256, 1024: 128}, points)
    f, error = statistics.extrapolate({n: run.f for n, run in runs.items()})
    z = (f - limit.mean(axis=0)) / np.hypot(error, statistics.standard_error(limit))
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=15)
    slope, _ = statistics.log_log_slope({n: r.f - limit.mean(axis=0) for n, r in runs.items()})
    assert abs(slope + 0.5) < 0.1


@pytest.mark.slow
def test_long_training_that_converges() -> None:
    """Fifty steps reveal directions down to round-off, which must not be amplified (float32)."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(10, 12)), jnp.float32)
    batch = x, jnp.asarray(rng.normal(size=10), jnp.float32)
    mup, model = tp.parameterizations.mup, tp.mlp(3, 12)
    step, theta = mup.step(model, "mse", 0.5), mup.theta(model)
    ends = []
    for width, replicates in ((tp.Deferred(512), 6), (512, 24)):
        run = tp.train(
            step, theta, [batch] * 50, width=width, key=jax.random.key(1),
            replicates=replicates, progress=False,
        )  # fmt: skip
        ends.append(run.replicates.outputs[:, -1])
    gap = abs(ends[0].mean() - ends[1].mean())
    assert gap < 4 * np.hypot(*(e.std(ddof=1) / len(e) ** 0.5 for e in ends))
