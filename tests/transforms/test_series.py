"""Values of several terms: kernel regimes, fluctuations, exact zeros, named errors."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels
from oracles.helpers import fast_compilation
from scipy import stats
from test_errors import PARAMETERS
from test_refusals import UNKNOWN as PROGRAMS

import tplimit as tp
from tplimit.values.parity import EVEN, UNKNOWN, Parity

N = tp.Width("n")
RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 3))
X = X / np.linalg.norm(X, axis=1, keepdims=True) * 3**0.5
MSE = np.array([1.0, -1.0, 0.5, 1.0])
SIGNS = np.array([1.0, -1.0, 1.0, 1.0])
RATE = 0.7
#: Two-sided, with Bonferroni's correction by the test: a false alarm in 10^4 runs.
ALARM = 1e-4


def slopes(loss):
    if loss == "mse":
        return lambda f: (f[..., : len(MSE)] - MSE) / len(MSE)
    return lambda f: -SIGNS / (1 + np.exp(SIGNS * f[..., : len(SIGNS)])) / len(SIGNS)


def trained(depth, activation, loss, parameterization=tp.parameterizations.ntk, **how):
    model = tp.mlp(depth, 3, activation=activation)
    step = parameterization.step(model, loss, RATE)
    predict, inputs = parameterization.predict(model), jnp.asarray(X, jnp.float32)
    labels = MSE if loss == "mse" else SIGNS
    batch = jnp.asarray(X[: len(labels)], jnp.float32), jnp.asarray(labels, jnp.float32)
    given = {"steps": 20, "samples": 2**12, "replicates": 6, "width": tp.inf} | how
    return tp.train(
        step, parameterization.theta(model), [batch] * given.pop("steps"),
        key=jax.random.key(3), observe=lambda state: predict(state, inputs), progress=False,
        **given,
    )  # fmt: skip


CASES = [
    (1, "tanh", "mse"),
    *[
        pytest.param(depth, activation, loss, marks=pytest.mark.slow)
        for depth in (1, 2, 3) for activation in ("tanh", "relu") for loss in ("mse", "logistic")
    ],
    pytest.param(2, "leaky_relu", "mse", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("depth", "activation", "loss"), CASES)
def test_ntk_is_kernel_gradient_descent(depth, activation, loss):
    """Twenty steps from the same initial function, by a kernel that does not know the program.

    Sixteen replicates: |z| > 4 in one of 900 cases by chance (Student's t).
    """
    f = trained(depth, activation, loss, replicates=16).replicates.observations.astype(np.float64)
    _, tangent = kernels.kernels(X, depth, activation)
    expected = kernels.descent(tangent, f[:, 0], slopes(loss), RATE, 20)
    distance = (f - expected)[:, 1:]
    assert np.abs(expected[:, -1] - expected[:, 0]).max() > 0.3  # it moves
    assert np.abs(distance).max() < 0.04
    # The Monte Carlo error is common to all points and steps of a replicate: one z of each.
    projected = distance.reshape(len(f), -1) @ np.sign(expected.mean(axis=0)[1:]).ravel()
    z = projected.mean() / (projected.std(ddof=1) / len(f) ** 0.5)
    assert abs(z) < 4


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (2, "tanh")])
def test_ntk_with_classes_and_minibatches(depth, activation):
    """Softmax of three outputs, two points a step in turn: one kernel for every output."""
    ntk, model = tp.parameterizations.ntk, tp.mlp(depth, 3, outputs=3, activation=activation)
    predict, points = ntk.predict(model), jnp.asarray(X, jnp.float32)
    labels = np.eye(3)[[0, 1, 2, 1]]
    parts = [slice(0, 2), slice(2, 4)] * 4
    run = tp.train(
        ntk.step(model, "cross_entropy", RATE), ntk.theta(model),
        [(points[part], jnp.asarray(labels[part], jnp.float32)) for part in parts],
        width=tp.inf, key=jax.random.key(1), observe=lambda state: predict(state, points),
        samples=2**12, replicates=6, progress=False,
    )  # fmt: skip
    found = run.replicates.observations.astype(np.float64)
    _, tangent = kernels.kernels(X, depth, activation)
    f, expected = found[:, 0], []
    for part in parts:
        share = np.exp(f[:, part]) / np.exp(f[:, part]).sum(axis=-1, keepdims=True)
        f = f - RATE * np.einsum("pb,rbk->rpk", tangent[:, part], share - labels[part]) / 2
        expected.append(f)
    distance = found[:, 1:] - np.stack(expected, axis=1)
    assert np.abs(expected[-1] - found[:, 0]).max() > 0.3
    assert np.abs(distance).max() < 0.04
    signs = np.sign(np.mean(expected, axis=1)).ravel()
    projected = distance.reshape(len(found), -1) @ signs
    z = projected.mean() / (projected.std(ddof=1) / len(found) ** 0.5)
    assert abs(z) < stats.t.isf(ALARM / 2, len(found) - 1)


@pytest.mark.slow
def test_initial_function_is_the_gaussian_process():
    """Covariance over keys, of points in different layers' spaces, and normality."""
    f = trained(2, "tanh", "mse", steps=1, samples=256, replicates=400).replicates
    start = f.observations[:, 0].astype(np.float64)
    covariance, _ = kernels.kernels(X, 2, "tanh")
    whitened = start @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    assert stats.kstest(whitened.ravel(), "norm").pvalue > ALARM
    # Entries of the sample covariance of white noise: variance 1 / R, 2 / R on the diagonal.
    excess = (whitened.T @ whitened / len(start) - np.eye(6)) * len(start) ** 0.5
    excess[np.diag_indices(6)] /= 2**0.5
    assert np.abs(excess).max() < stats.norm.isf(ALARM / 2 / 21)


@pytest.mark.slow
def test_zero_initial_function():
    f = trained(2, "tanh", "mse", init_output="zero", terms=2).replicates.observations
    assert np.all(f[:, 0] == 0)
    _, tangent = kernels.kernels(X, 2, "tanh")
    expected = kernels.descent(tangent, np.zeros(6), slopes("mse"), RATE, 20)
    np.testing.assert_allclose(f.mean(axis=0), expected, atol=6e-3)


def test_increments_start_at_zero_exactly():
    """``f - f_0``, with ``f_0`` in the same program and as an input; then a step of the kernel.

    One hidden layer: a matrix asked twice answers to round-off only.
    """
    model, ntk = tp.mlp(1, 3, activation="tanh"), tp.parameterizations.ntk
    predict, x = ntk.predict(model), jnp.asarray(X, jnp.float32)
    step = tp.limit(ntk.step(model, "mse", RATE))
    start = tp.sample(ntk.theta(model), jax.random.key(5), width=tp.inf, samples=2**10, terms=2)
    since = tp.limit(lambda t, first: predict(t, x) - predict(first, x))
    given = tp.limit(lambda t, f: predict(t, x) - f)
    f = tp.limit(predict)(start, x)
    assert np.abs(f).min() > 0.01  # f_0 itself is random
    np.testing.assert_array_equal(since(start, start), 0)
    np.testing.assert_array_equal(given(start, f), 0)
    state, _ = step(start, (x[:4], jnp.asarray(MSE, jnp.float32)))
    _, tangent = kernels.kernels(X, 1, "tanh")
    f = np.asarray(f, float)
    expected = kernels.descent(tangent, f, slopes("mse"), RATE, 1)[1] - f
    for increment in (since(state, start), given(state, f.astype(np.float32))):
        np.testing.assert_allclose(increment, expected, atol=0.02)
    assert np.abs(expected).max() > 0.2


@pytest.mark.slow
def test_increments_of_deep_networks():
    """Two hidden layers: to round-off at first, then a step of the kernel from the same ``f_0``."""
    model, ntk = tp.mlp(2, 3, activation="tanh"), tp.parameterizations.ntk
    predict, x = ntk.predict(model), jnp.asarray(X, jnp.float32)
    start = tp.sample(ntk.theta(model), jax.random.key(0), width=tp.inf, samples=2**10, terms=2)
    both = tp.limit(lambda t, s: (predict(t, x) - predict(s, x), predict(s, x)))
    assert np.abs(both(start, start)[0]).max() < 2e-6
    batch = x[:4], jnp.asarray(-MSE, jnp.float32)
    state, _ = tp.limit(ntk.step(model, "mse", RATE))(start, batch)
    increment, f = (np.asarray(value, float) for value in both(state, start))
    _, tangent = kernels.kernels(X, 2, "tanh")
    expected = -RATE * tangent[:, :4] @ (f[:4] + MSE) / 4
    np.testing.assert_allclose(increment, expected, atol=0.02)
    assert np.abs(expected).max() > 0.2


def test_one_term_is_refused_where_it_does_not_decide():
    with pytest.raises(tp.CancellationError, match="zero within the sampling error"):
        trained(1, "tanh", "mse", terms=1)


@pytest.mark.slow
def test_feature_learning_is_the_same_with_more_terms():
    """muP has nothing to gain from the second term, and loses nothing."""
    mup = tp.parameterizations.mup
    one = trained(2, "tanh", "mse", mup, steps=4, terms=1).replicates.observations
    two = trained(2, "tanh", "mse", mup, steps=4, terms=2).replicates.observations
    spread = one.std(axis=0, ddof=1) + two.std(axis=0, ddof=1)
    z = (one.mean(axis=0) - two.mean(axis=0))[1:] / spread[1:] * len(one) ** 0.5
    assert np.abs(z).max() < stats.t.isf(ALARM / 2 / z.size, len(one) - 1)


# --- sums over a width


def sampled(theta, terms=2, samples=2**12, seed=0, **how):
    key = jax.random.key(seed)
    return tp.sample(theta, key, width=tp.inf, samples=samples, terms=terms, **how)


@pytest.mark.slow
def test_a_sum_is_its_mean_and_its_central_limit_term():
    theta = {"u": tp.normal((N,)), "v": tp.normal((N,))}

    def sums(t):
        return (t["u"] ** 2).mean(), (t["u"] * t["v"]).sum(), t["v"].sum() / N_of(t) ** 0.5

    def N_of(t):
        return t["v"].shape[0]

    found = [tp.series(sums)(sampled(theta, samples=512, seed=s)) for s in range(200)]
    square, product, root = zip(*found, strict=True)
    assert {tuple(e for e, _ in s.terms) for s in square} == {(0, Fraction(-1, 2))}
    np.testing.assert_allclose([s.at(0) for s in square], 1, atol=1e-3)
    # Var(u^2) = 2, Var(u v) = 1, and both sums are exactly Gaussian to this order.
    for values, std in (
        ([s.at(Fraction(-1, 2)) for s in square], 2**0.5),
        ([s.at(Fraction(1, 2)) for s in product], 1.0),
        ([s.at(0) for s in root], 1.0),
    ):
        assert stats.kstest(np.array(values, float) / std, "norm").pvalue > ALARM
    assert {s.remainder for s in product} == {0}


CENTRED = {
    "square": lambda t: t["h"] ** 2 - 1,
    "abs": lambda t: jnp.abs(t["h"]) - (2 / np.pi) ** 0.5,
    "cos": lambda t: jnp.cos(t["h"]) - np.exp(-0.5),
    "query": lambda t: jnp.cos(t["W"] @ t["h"]) - np.exp(-0.5),
}


@pytest.mark.parametrize("noise", ["sobol", "random"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "query" else n for n in CENTRED]
)
def test_spurious_leading_terms_are_refused(name, noise):
    """``n^-1/2 sum(h^2 - 1)`` has a mean that is 0 for a reason no symmetry knows.

    It is no number, and nothing may be decided by its sign.
    """
    theta = {"h": tp.normal((N,)), "W": tp.normal((N, N), std=N**-0.5)}

    def total(t):
        return CENTRED[name](t).sum() / t["h"].shape[0] ** 0.5

    programs = {
        "value": total,
        "saturated": lambda t: jnp.tanh(total(t)),
        "branch": lambda t: jnp.where(total(t) > 0, 1.0, 2.0),
    }
    for program in programs.values():
        for seed in range(3):
            with pytest.raises(tp.CancellationError, match="within the sampling error"):
                tp.limit(program)(sampled(theta, 1 + seed % 2, 2**11, seed, noise=noise))


def test_numerically_centred_values_cancel():
    """``x - mean(x)``: the mean of the centred vector vanishes with its fluctuation."""

    def centred(t):
        x = jnp.tanh(t["h"] + 0.5)
        return (x - x.mean()).sum() / x.shape[0] ** 0.5

    found = tp.series(centred)(sampled({"h": tp.normal((N,))}))
    assert abs(float(found.at(0))) < 1e-4


def test_beyond_the_remainder_nothing_is_told():
    h = sampled({"h": tp.normal((N,))})
    found = tp.series(lambda t: (t["h"] ** 2).mean())(h)
    with pytest.raises(tp.CancellationError, match="remainder is of order n\\^-1"):
        found.at(-1)


# --- Gaussian matrices


@pytest.mark.slow
def test_queries_agree_to_second_order():
    """`y W x` three ways in one program, with `y` made from `W x`: also at order n^-1/2."""
    theta = {"W": tp.normal((N, N), std=N**-0.5), "u": tp.normal((N,)), "v": tp.normal((N,))}

    def forms(t):
        n = t["u"].shape[0]
        x = jnp.tanh(t["u"]) + 0.3
        h = t["W"] @ x
        y = t["v"] + jnp.tanh(h) + 0.5 * h
        back = t["W"].T @ y
        again = t["W"] @ (2 * x + jnp.tanh(back)) - t["W"] @ jnp.tanh(back)
        return y @ h / n, back @ x / n, y @ again / (2 * n)

    for seed in range(3):
        found = tp.series(forms)(sampled(theta, seed=seed))
        for order in (0, Fraction(-1, 2)):
            values = [float(one.at(order)) for one in found]
            assert abs(values[0]) > 0.05
            np.testing.assert_allclose(values, values[0], atol=2e-3)


def test_zeros_in_the_shape_of_a_matrix():
    """As the memory of an optimizer begins: it adds nothing."""
    theta = {"W": tp.normal((N, N), std=N**-0.5), "u": tp.normal((N,))}

    def squares(t):
        memory = 0.5 * jnp.zeros_like(t["W"]) + t["W"]
        return ((memory @ t["u"]) ** 2).mean(), ((t["W"] @ t["u"]) ** 2).mean()

    with fast_compilation():
        with_zeros, without = tp.series(squares)(sampled(theta, samples=64))
    assert float(with_zeros.at(0)) == pytest.approx(float(without.at(0)), rel=1e-5)


# --- programs whose leading terms vanish

#: What even two terms do not decide.
UNDECIDED = {
    "argmax", "floor", "integer", "where it is small",
    "dead neurons", "cancelled sums",
}  # fmt: skip
GROWING = {"inverse", "through a query", "cancelled constant"}
QUICK = {"where it is small"}
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS]


@pytest.mark.parametrize("name", NAMES)
def test_two_terms_decide_as_networks_do_or_not_at_all(name):
    """The law over keys is that of networks of width 1024 (60 of each, two-sample test)."""
    keys = [jax.random.key(seed) for seed in range(60)]
    limited = tp.limit(PROGRAMS[name])

    def once(key):
        return limited(tp.sample(PARAMETERS, key, width=tp.inf, samples=256, terms=2))

    with fast_compilation():
        if name in UNDECIDED | GROWING:
            kind = tp.DivergenceError if name in GROWING else tp.CancellationError
            with pytest.raises(kind):
                once(keys[0])
            return
        limit = np.array([np.ravel(once(key))[0] for key in keys], float)
        finite = np.array(
            [np.ravel(PROGRAMS[name](tp.sample(PARAMETERS, k, width=1024)))[0] for k in keys], float
        )
    if name == "saturation":  # of order n^-1/2
        assert np.all(limit == 0) and np.abs(finite).max() < 0.2
        return
    assert stats.ks_2samp(limit, finite).pvalue > ALARM


# --- means that only the second term of a vector has

VECTORS = {name: tp.normal((N,)) for name in "uvw"}


def shifted(fn):
    """`v fn(u + 1 + v / sqrt(n))`, summed over `sqrt(n)`: its mean is that of `v^2 fn'(u + 1)`."""

    def program(t):
        root = t["u"].shape[0] ** 0.5
        return (t["v"] * fn(t["u"] + 1 + t["v"] / root)).sum() / root

    return program


@pytest.mark.parametrize(
    ("fn", "slope"),
    [
        (jnp.abs, np.sign),
        (jnp.tanh, lambda h: 1 / np.cosh(h) ** 2),
        (jax.nn.elu, lambda h: np.where(h > 0, 1, np.exp(h))),
        (lambda h: jax.nn.leaky_relu(h, 0.1), lambda h: np.where(h > 0, 1, 0.1)),
        (jnp.sin, np.cos),
    ],
    ids=["abs", "tanh", "elu", "leaky_relu", "sin"],
)
def test_slopes_enter_at_second_order(fn, slope):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    # A jump of the slope costs the quadrature about a node's share.
    expected = weights @ slope(nodes + 1) / weights.sum()
    found = tp.limit(shifted(fn))(sampled(VECTORS, init_output="zero"))
    assert abs(found - expected) < 0.06


MASKED = {
    "stacked masks": lambda t: jnp.where(
        ~jnp.stack([t["u"] > 0, t["v"] > 0]), t["w"] ** 2, 0.0
    ).mean(),
    "inexact mask": lambda t: jnp.where(
        ~jnp.stack([t["u"] + t["v"] / t["u"].shape[0] ** 0.5 > 0]), t["w"] ** 2, 0.0
    ).mean(),
    "saturated zeros": lambda t: jnp.tanh(t["u"].shape[0] * jax.nn.relu(t["u"])).mean(),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", MASKED)
def test_masks_and_exact_zeros(name, terms):
    """Half of the units: 1/2, with one term as with two."""
    assert abs(tp.limit(MASKED[name])(sampled(VECTORS, terms)) - 0.5) < 0.02


HIDDEN = {
    "log of what vanishes": (lambda t: jnp.log((t["u"] ** 2).mean() / t["u"].shape[0] ** 0.5)),
    "log of dead units": lambda t: jnp.log(jax.nn.relu(t["u"]) + 1 / t["u"].shape[0]).mean(),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_lower_terms_decide_is_refused(name):
    """Where the leading term is 0 the value is not: no limit may be read off it."""
    for seed in range(4):
        with pytest.raises((tp.CancellationError, tp.NoLimitError)):
            tp.limit(HIDDEN[name])(sampled(VECTORS, seed=seed))


def test_a_random_sign_decides_which_term_leads():
    """`tanh` of `sqrt(n)`, or of 1."""
    program = tp.limit(lambda t: jnp.tanh(jnp.where(t["v"].sum() > 0, t["v"].shape[0] ** 0.5, 1.0)))
    found = [round(float(program(sampled(VECTORS, seed=seed))), 5) for seed in range(8)]
    assert set(found) == {1.0, round(float(np.tanh(1)), 5)}


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fluctuations": True, "init_output": "zero"}, "fluctuations are the second of two terms"),
        ({"fluctuations": True, "terms": 1}, "fluctuations are the second of two terms"),
        ({"fluctuations": True, "width": 8}, "around the limit"),
        ({"bias_check": True, "replicates": 1}, "replicates=2"),
        ({"terms": 0}, "terms=0 is out of range: pass an integer from 1 to 3"),
        ({"init_output": "none"}, "'sample' or 'zero'"),
    ],
    ids=str,
)
def test_options_that_have_no_meaning(options, message):
    with pytest.raises((ValueError, tp.LimitError), match=message):
        trained(1, "tanh", "mse", **options)


@pytest.mark.slow
def test_a_random_limit_says_so(tmp_path):
    run = trained(1, "tanh", "mse", steps=1, samples=64)
    assert run.random and "random limit" in repr(run)
    assert tp.Trajectory.load(run.save(tmp_path / "run")).random
    theta = {"v": tp.normal((N,))}
    output = lambda t, _: (t, t["v"].sum() / t["v"].shape[0] ** 0.5)
    how = {"key": jax.random.key(0), "samples": 64, "progress": False}
    with pytest.warns(tp.LimitWarning, match="random function"):
        tp.compare(output, theta, [None], widths=[8, 16], seeds=2, replicates=2, **how)


# --- parity


def test_parity_is_an_algebra_of_signs():
    odd, other = Parity(frozenset({1})), Parity(frozenset({2}))
    assert (odd * odd) == Parity()
    fresh = Parity(frozenset({1}), fresh=True)
    assert (fresh & EVEN).fresh and (fresh & fresh).fresh and not (fresh & odd).fresh
    assert not (fresh * odd).fresh and not fresh.under("odd").fresh
    assert (odd * other).odd == {1, 2}
    assert (odd & other) == Parity(frozenset(), frozenset({1, 2}))
    assert (odd & odd).odd == {1}
    assert odd.under("odd").vanishes and not odd.under("even").vanishes
    assert odd.under("neither").unknown == {1}
    assert (odd.under("neither") * odd).odd == frozenset()
    assert (odd * UNKNOWN) == UNKNOWN and not UNKNOWN.vanishes
