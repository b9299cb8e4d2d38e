"""Terms of order n^-1/2: the law of finite networks around their mean-field limit.

Three accounts of it are compared: many finite networks, `tp.train(..., fluctuations=True)`, both of
one program, and the linear system of `oracles.fluctuations`, which knows no program. Points 0 .. 3
are trained on, 4 and 5 are not.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import fluctuations as oracle
from oracles.networks import mup
from scipy import stats

import tplimit as tp
from tplimit.gaussian import deferred

N = tp.Width("n")
RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 3))
X = X / np.linalg.norm(X, axis=1, keepdims=True) * 3**0.5
Y = np.array([1.0, -1.0, 0.5, 1.0])
POINTS, BATCH = (
    jnp.asarray(X, jnp.float32),
    (jnp.asarray(X[:4], jnp.float32), jnp.asarray(Y, float)),
)
STEPS, RATE, WIDTH = 6, 0.5, 400
#: Two-sided, with Bonferroni's correction by the test: a false alarm in 10^4 runs.
ALARM = 1e-4


def mean_field(t, x):
    return jnp.tanh(x @ t["w"]) @ t["a"] / t["a"].shape[0]


def mean_field_step(t, batch):
    x, y = batch
    n = t["a"].shape[0]
    loss = lambda t: 0.5 * jnp.mean((mean_field(t, x) - y) ** 2)
    value, g = jax.value_and_grad(loss)(t)
    return jax.tree.map(lambda p, d: p - RATE * n * d, t, g), value


def observe(t):
    return mean_field(t, POINTS)


def trained(width, replicates, steps=STEPS, **how):
    """The program at any width: `(replicates, steps + 1, points)` of ordinary outputs."""
    theta = {"w": tp.normal((3, N)), "a": tp.normal((N,))}
    return tp.train(
        mean_field_step, theta, [BATCH] * steps, width=width, replicates=replicates,
        key=jax.random.key(1), observe=observe, progress=False, **how,
    )  # fmt: skip


def of_networks(width, replicates):
    """`sqrt(N) (f_N - mean)`: (replicates, steps * points)."""
    f = trained(width, replicates).replicates.observations.astype(np.float64)
    return width**0.5 * (f - f.mean(axis=0)).reshape(replicates, -1)


@pytest.fixture(scope="module")
def networks():
    return of_networks(WIDTH, 40_000)


@pytest.fixture(scope="module")
def limit():
    run = trained(tp.inf, 2000, samples=256, fluctuations=True)
    return run.fluctuations.observations.reshape(2000, -1).astype(np.float64)


@pytest.fixture(scope="module")
def formula():
    return oracle.tanh_covariance(X, Y, RATE, STEPS)


def covariance(runs):
    return np.cov(runs, rowvar=False)


def scores(found, runs, expected, expected_runs=np.inf):
    """Differences of covariances of Gaussians in standard errors, each pair of entries once."""
    sizes = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    correlation = expected / sizes
    error = np.sqrt((1 + correlation**2) * (1 / runs + 1 / expected_runs))
    return ((found - expected) / sizes / error)[np.triu_indices(len(found))]


def within_chance(z):
    return np.abs(z).max() < stats.norm.isf(ALARM / 2 / z.size)


@pytest.mark.slow
def test_networks_have_the_variance_of_the_formula(networks, formula):
    """`N Var f_N` within 5 %, and all covariances within 5 % of the standard deviations.

    The standard error is 0.7 %, so that chance alone fails this in less than 1 of 10^6 runs.
    """
    found, sizes = covariance(networks), np.sqrt(np.diag(formula.full))
    assert np.abs(np.diag(found) / sizes**2 - 1).max() < 0.05
    assert np.abs((found - formula.full) / np.outer(sizes, sizes)).max() < 0.05
    # Units that do not act on each other would fluctuate more, on trained points after all steps.
    free = np.diag(formula.without_interaction) / np.diag(found)
    free = free.reshape(STEPS + 1, -1)[1:]
    assert free.min() > 1.08
    assert free[:, :4].min() > 1.15
    assert free.mean() > 1.3


@pytest.mark.slow
def test_the_formula_is_better_at_larger_widths(networks, formula):
    """The error of `N Var f_N` is of order 1/N: at N = 10 many times what it is at N = 400."""
    error = [
        np.abs(np.diag(covariance(runs)) / np.diag(formula.full) - 1).mean()
        for runs in (of_networks(10, 40_000), networks)
    ]
    assert error[0] > 4 * error[1]


@pytest.mark.slow
def test_the_limit_has_the_covariance_of_networks(limit, networks, formula):
    """All 903 covariances of steps and points, with networks and with the formula; all means."""
    found = covariance(limit)
    assert within_chance(scores(found, len(limit), covariance(networks), len(networks)))
    assert within_chance(scores(found, len(limit), formula.full))
    assert within_chance(limit.mean(axis=0) / np.sqrt(np.diag(found) / len(limit)))
    assert np.abs(scores(found, len(limit), formula.without_interaction)).max() > 20


def least_p_value(runs):
    """Kolmogorov and Smirnov's test of all entries and of their first principal components.

    Mean and standard deviation are those of the runs, which makes a false alarm rarer.
    """
    _, vectors = np.linalg.eigh(covariance(runs))
    both = np.concatenate([runs, runs @ vectors[:, -8:]], axis=1)
    both = (both - both.mean(axis=0)) / both.std(axis=0)
    return min(stats.kstest(entry, "norm").pvalue for entry in both.T)


@pytest.mark.slow
def test_fluctuations_are_normal(limit, networks):
    """Level 1e-4 for the 50 tests together, of 20000 networks; those of width 4 are not normal."""
    assert least_p_value(networks[:20_000]) > ALARM / 50
    assert least_p_value(limit) > ALARM / 50
    assert least_p_value(of_networks(4, 20_000)) < 1e-3 * ALARM


@pytest.mark.slow
def test_fluctuations_vanish_where_the_loss_does(limit, networks):
    """On trained points the variance falls at every step, and to 0 with the loss; not elsewhere.

    Networks and limit agree at every step: 31 variances, of 512 runs at least.
    """
    steps = 30
    wide = trained(WIDTH, 2000, steps)
    run = trained(tp.inf, 512, steps, samples=64, fluctuations=True)
    finite = WIDTH * wide.replicates.observations.astype(np.float64).var(axis=0, ddof=1)
    infinite = run.fluctuations.observations.astype(np.float64).var(axis=0, ddof=1)
    for variance, losses in ((finite, wide.outputs), (infinite, run.outputs)):
        assert np.all(np.diff(losses) < 0)
        assert losses[-1] < 0.005 * losses[0]
        on_trained = variance[:, :4].mean(axis=1)
        assert on_trained[-1] < 0.03 * on_trained[0]
        assert variance[-1, 4:].min() > 0.15 * variance[0, 4:].min()
    for runs in (networks, limit):
        shown = runs.var(axis=0).reshape(STEPS + 1, -1)[:, :4].mean(axis=1)
        assert all(later < earlier for earlier, later in pairwise(shown))
    z = np.log(infinite / finite) / (2 / 2000 + 2 / 512) ** 0.5
    assert within_chance(z)


# --- two hidden layers: fluctuations of Gaussian matrices as well


def deep(width, replicates, **how):
    """Of muP with two hidden layers, functions of its own: nothing compiled is reused."""
    network = mup("tanh", hidden=2, eta=RATE)
    run = tp.train(
        network.step, network.theta, [BATCH] * 2, width=width, key=jax.random.key(3),
        replicates=replicates, observe=lambda t: network.predict(t, POINTS), progress=False, **how,
    )  # fmt: skip
    kept = run.replicates if isinstance(width, int) else run.fluctuations
    return kept.observations.reshape(replicates, -1).astype(np.float64)


@pytest.fixture(scope="module")
def deep_networks():
    return 256**0.5 * deep(256, 1500)


@pytest.mark.slow
def test_two_hidden_layers_fluctuate_as_networks_do(deep_networks):
    """All 171 covariances of three times and six points, and normality."""
    found = deep(tp.inf, 640, samples=64, fluctuations=True)
    z = scores(covariance(found), len(found), covariance(deep_networks), len(deep_networks))
    assert within_chance(z)
    assert least_p_value(found) > ALARM / 26
    assert least_p_value(deep_networks) > ALARM / 26


@pytest.mark.slow
@pytest.mark.usefixtures("unshared")
def test_answers_of_matrices_fluctuate_too(deep_networks, monkeypatch):
    """Negative control: matrices whose answers miss their correction of order n^-1/2."""
    monkeypatch.setattr(deferred, "_gamma", lambda store, *_: store.gamma)
    found = deep(tp.inf, 640, samples=64, fluctuations=True)
    z = scores(covariance(found), len(found), covariance(deep_networks), len(deep_networks))
    assert not within_chance(z)


@pytest.mark.slow
def test_fluctuations_are_saved(tmp_path):
    run = trained(tp.inf, 2, 2, samples=64, fluctuations=True)
    again = tp.Trajectory.load(run.save(tmp_path / "run.safetensors"))
    for name in ("outputs", "observations"):
        np.testing.assert_array_equal(
            getattr(again.fluctuations, name), getattr(run.fluctuations, name)
        )
    np.testing.assert_array_equal(again.outputs, run.outputs)
