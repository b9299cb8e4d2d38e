"""Quantiles and medians along a width: those of the limiting law, refused where it jumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tplimit as tp

N = tp.Width("n")
THETA = {"v": tp.normal((N,)), "U": tp.normal((3, N)), "W": tp.normal((N, N), std=N**-0.5)}
LEVELS = jnp.array([0.05, 0.3, 0.5, 0.9])


@pytest.fixture(scope="module")
def limit():
    return tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=2**12)


def width(theta):
    return theta["v"].shape[0]


# Laws with a closed form: of v, v^2 and exp(v), and of the absolute deviation from the median.
LAWS = {
    "normal": (lambda v: v, stats.norm.ppf),
    "chi-squared": (lambda v: v**2, stats.chi2(1).ppf),
    "log-normal": (jnp.exp, stats.lognorm(1).ppf),
    "half-normal": (lambda v: jnp.abs(v - jnp.median(v)), stats.halfnorm.ppf),
}


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_of_known_laws(limit, name):
    """Within five of the stated errors, which are cautious: a false alarm in 10^6 or less."""
    function, quantile = LAWS[name]
    found = tp.series(lambda t: jnp.quantile(function(t["v"]), LEVELS))(limit)
    (exponent, coefficient), *_ = found.terms
    assert exponent == 0
    assert found.remainder == -0.5  # networks fluctuate by as much, by how much is not said
    bound = np.array([0.01, 0.02, 0.02, 0.05]) * (1 + np.abs(quantile(LEVELS)))
    assert np.all(np.abs(coefficient - quantile(LEVELS)) < bound)


@pytest.mark.parametrize("noise", ["sobol", "random"])
def test_errors_are_those_of_many_draws(noise):
    """Over 24 keys: the root mean square deviation from the truth is at most 1.6 stated errors (of
    normal deviations P < 1e-4 for each level), and no deviation is beyond five."""
    levels = jnp.array([0.2, 0.6, 0.9])
    function = tp.leading(lambda v: jnp.quantile(jnp.exp(v), levels))
    z = []
    for key in range(24):
        v = tp.sample(tp.normal((N,)), jax.random.key(key), width=tp.inf, samples=512, noise=noise)
        found = function(v)
        z.append((found.coefficient - stats.lognorm(1).ppf(levels)) / found.stderr)
    assert np.all(np.sqrt(np.mean(np.square(z), axis=0)) < 1.6)
    assert np.abs(z).max() < 5


def spellings(t):
    return [
        jnp.quantile(t["U"], 0.3, axis=1),
        jnp.percentile(t["U"], 30.0, axis=-1),
        jnp.nanquantile(t["U"], 0.3, axis=1),
        jnp.quantile(t["U"].T, 0.3, axis=0),
        jnp.quantile(t["U"], 0.3, axis=1, keepdims=True)[:, 0],
        jnp.quantile(t["U"], 0.3, axis=1, method="nearest"),
        jnp.quantile(t["U"], jnp.array([0.3]), axis=1)[0],
        jax.vmap(lambda row: jnp.quantile(row, 0.3))(t["U"]),
        jax.jit(lambda u: jnp.quantile(u, 0.3, axis=1))(t["U"]),
    ]


def test_every_spelling_has_the_same_limit(limit):
    whole = lambda t: [jnp.quantile(t["U"], 0.3), jnp.median(t["v"] - 0.5244)]
    (first, *others), over_all = tp.limit(lambda t: (spellings(t), whole(t)))(limit)
    np.testing.assert_allclose(first, stats.norm.ppf(0.3), atol=0.01)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)
    np.testing.assert_allclose(over_all, stats.norm.ppf(0.3), atol=0.01)


def test_a_level_may_be_a_number_of_the_limit(limit):
    """q = E[v^2] / 4: its error, and what is unknown of it, are those of the quantile, too."""
    found = tp.leading(lambda t: jnp.quantile(t["v"], jnp.mean(t["U"][0] ** 2) / 4))(limit)
    assert abs(found.coefficient - stats.norm.ppf(0.25)) < 5 * found.stderr
    known = tp.leading(lambda t: jnp.quantile(t["v"], 0.25))(limit)
    assert found.stderr > known.stderr


def test_powers_of_the_width(limit):
    """A quantile is positively homogeneous, row by row; lower terms are a remainder."""
    scales = lambda t: jnp.array([1.0, width(t), 0.0])[:, None]
    found = tp.leading(lambda t: jnp.quantile(t["U"] * scales(t), 0.3, axis=1))(limit)
    assert list(found.exponent) == [0, 1, -np.inf]
    np.testing.assert_allclose(found.coefficient, [*[stats.norm.ppf(0.3)] * 2, 0], atol=0.01)
    beside = tp.series(lambda t: jnp.quantile(t["v"] + t["U"][0] / width(t) ** 0.25, 0.3))(limit)
    assert beside.remainder == -0.25


def with_atoms(t):
    relu = jax.nn.relu
    return {
        "dead": 1 + jnp.median(relu(t["v"] - 0.2)),
        "signs": jnp.quantile(jnp.sign(t["v"] - 0.7), jnp.array([0.3, 0.9])),
        "bins": jnp.median(jnp.digitize(t["v"], jnp.array([-1, 1.0]))),
        "constant": jnp.median(jnp.full(width(t), 3.0)),
        "edge": jnp.median(relu(t["v"])),
        "beyond": jnp.quantile(relu(t["v"]), 0.8),
    }


def test_inside_an_atom_it_is_exact(limit):
    """More than half of the units are dead, three quarters of the signs are -1."""
    found = tp.limit(with_atoms)(limit)
    assert (found["dead"], found["bins"], found["constant"]) == (1, 1, 3)
    assert found["signs"].tolist() == [-1, 1]
    # At the edge of an atom the quantile function is continuous.
    assert abs(found["edge"]) < 0.02
    np.testing.assert_allclose(found["beyond"], stats.norm.ppf(0.8), atol=0.02)
    assert tp.leading(lambda t: with_atoms(t)["dead"])(limit).stderr == 0


JUMPS = {
    "signs": lambda v: jnp.sign(v),
    "a gap": lambda v: v + jnp.sign(v),
    "a narrow gap": lambda v: v + 0.1 * jnp.sign(v),
    "no density there": lambda v: jnp.cbrt(v),
    "an atom beside a gap": lambda v: jnp.where(v > 0, 1 + v, 0),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_of_the_law_is_refused(limit, name):
    """In one and two terms; a network's median is on one side or the other, by chance."""
    function = lambda t: jnp.median(JUMPS[name](t["v"]))
    for transform in (tp.limit, tp.series):
        with pytest.raises(tp.NoLimitError, match="has a gap at this quantile") as error:
            transform(function)(limit)
        assert error.value.location.file == __file__
        assert error.value.location.line == function.__code__.co_firstlineno


@pytest.mark.parametrize("name", [*LAWS, "uniform"])
def test_densities_are_not_taken_for_gaps(name):
    """Two thousand quantiles: with a false-alarm rate of 1e-6 each, one is refused in 1 of 500."""
    function = LAWS[name][0] if name in LAWS else stats_uniform
    levels = jnp.linspace(0.1, 0.9, 200)
    for key in range(10):
        v = tp.sample(
            tp.normal((N,)), jax.random.key(key), width=tp.inf, samples=512, noise="random"
        )
        assert np.all(np.isfinite(tp.limit(lambda v: jnp.quantile(function(v), levels))(v)))


def stats_uniform(v):
    return jax.scipy.special.erf(v)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda t: jnp.quantile(t["v"], 0.0), tp.NoLimitError, "most extreme coordinate"),
        (lambda t: jnp.quantile(t["v"], jnp.array([0.5, 1.0])), tp.NoLimitError, "most extreme"),
        (lambda t: jnp.quantile(t["v"], 5e-4), tp.CancellationError, "Too few particles"),
        (lambda t: jnp.quantile(t["v"], 1 / width(t)), tp.NoLimitError, "not known to be of order"),
        (lambda t: jnp.mean(jnp.sort(t["v"]) * t["v"]), tp.NoLimitError, "have no order"),
        (lambda t: jax.grad(jnp.median)(t["v"]) @ t["v"], tp.NoLimitError, "over a width"),
    ],
)
def test_refusals_name_the_line(limit, function, error, text):
    with pytest.raises(error, match=text) as found:
        tp.limit(function)(limit)
    assert found.value.location.file == __file__


def test_a_function_that_is_called_the_same_is_read_as_it_stands(limit):
    """What it computes is tried out; the name alone tells nothing."""

    @jax.jit
    def quantile(a, q):
        return jnp.mean(a**2) + q

    np.testing.assert_allclose(tp.limit(lambda t: quantile(t["v"], 0.3))(limit), 1.3, atol=0.02)

    @jax.jit
    def searchsorted(edges, x):
        return (x > edges[0]).astype(jnp.int32)

    edges = jnp.array([0.0, 1.0, 2.0])
    share = tp.limit(lambda t: jnp.mean(1.0 * searchsorted(edges, t["v"])))(limit)
    np.testing.assert_allclose(share, 0.5, atol=0.01)

    @jax.jit
    def interp(x, xp, fp):
        return jnp.cos(x)

    mean = tp.limit(lambda t: jnp.mean(interp(t["v"], edges, edges)))(limit)
    np.testing.assert_allclose(mean, np.exp(-0.5), atol=0.01)


@pytest.mark.parametrize("method", ["linear", "midpoint", "lower", "higher", "nearest"])
def test_deferred_networks_have_their_own_quantiles(method):
    """At a finite width a quantile is that of the units, by the method that is asked for."""
    network = tp.sample(THETA, jax.random.key(0), width=tp.Deferred(999))
    units = tp.particles(lambda t: t["v"])(network)
    levels = [0.0, 0.1234, 0.77]
    found = tp.limit(lambda t: jnp.quantile(t["v"], jnp.array(levels), method=method))(network)
    np.testing.assert_allclose(found, np.quantile(units, levels, method=method), rtol=1e-5)


def test_trained_networks_have_the_quantiles_of_their_limit():
    """Three steps of muP: quantiles of activations of 24 networks of width 512, which fluctuate by
    n^-1/2 each, and at infinity. Of 24 differences none is beyond five standard errors of it (of
    Student's t with 23 degrees P = 1e-3 together)."""
    x = jnp.array([[1.5, -0.5], [0.5, 1.0]])
    batch = x, jnp.array([2.0, -1.0])
    p, model = tp.parameterizations.mup, tp.mlp(1, inputs=2, activation="tanh")

    def observe(theta):
        h = x @ p.effective(model, theta)["W1"]
        return jnp.quantile(jnp.tanh(h), jnp.array([0.1, 0.5, 0.8]), axis=1)

    how = {"observe": observe, "progress": False, "keep": []}
    laws = {"width": tp.inf, "samples": 2**11, "replicates": 4}, {"width": 512, "replicates": 24}
    step = p.step(model, "mse", 2.0)
    runs = [
        tp.train(step, p.theta(model), [batch] * 3, key=jax.random.key(2), **how, **law)
        for law in laws
    ]
    limit, networks = (run.observations for run in runs)
    errors = np.hypot(*(run.stderr.observations for run in runs))
    assert np.abs((limit - networks) / errors).max() < 5
    assert np.abs(limit[-1] - limit[0]).max() > 0.05  # it has moved
