"""Values of two terms: what dtype, compilation and spelling of a program may change, and may not.

The networks are those of `test_series.py`, in the neural tangent parameterization.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels
from oracles.helpers import fast_compilation
from scipy import stats
from test_series import ALARM, MSE, RATE, N, X, sampled, slopes

import tplimit as tp

DTYPES = [pytest.param(False, id="float32"), pytest.param(True, id="float64")]


def trained(depth, activation, steps=2, samples=256, replicates=2):
    """Outputs (replicates, steps + 1, points) in the default dtype."""
    model, ntk = tp.mlp(depth, 3, activation=activation), tp.parameterizations.ntk
    predict, dtype = ntk.predict(model), jnp.result_type(float)
    points = jnp.asarray(X, dtype)
    run = tp.train(
        ntk.step(model, "mse", RATE), ntk.theta(model),
        [(points[: len(MSE)], jnp.asarray(MSE, dtype))] * steps, width=tp.inf, terms=2,
        key=jax.random.key(3), samples=samples, replicates=replicates, progress=False,
        observe=lambda state: predict(state, points),
    )  # fmt: skip
    found = run.replicates.observations
    assert found.dtype == dtype
    return found.astype(np.float64)


# --- dtypes


def identity(h):
    return h


@pytest.mark.slow
@pytest.mark.parametrize("x64", DTYPES)
def test_linear_networks_descend_to_round_off(x64):
    """Their kernel needs second moments only, which particles have exactly: no sampling error."""
    with jax.enable_x64(x64):
        f = trained(1, identity, steps=4)
        eps = float(jnp.finfo(jnp.result_type(float)).eps)
    expected = kernels.descent(2 * X @ X.T / 3, f[:, 0], slopes("mse"), RATE, 4)
    assert np.abs(expected[:, -1] - expected[:, 0]).max() > 0.5
    np.testing.assert_allclose(f, expected, rtol=0, atol=64 * eps)


@pytest.mark.slow
def test_kernel_descent_in_double_precision():
    """Within the sampling error, which falls with the samples; one z, false alarm in 10^4 runs."""
    _, tangent = kernels.kernels(X, 1, "tanh")
    error = {}
    for samples in (2**8, 2**14):
        with jax.enable_x64(True):
            f = trained(1, "tanh", steps=4, samples=samples, replicates=6)
        expected = kernels.descent(tangent, f[:, 0], slopes("mse"), RATE, 4)
        error[samples] = (f - expected)[:, 1:]
    size = {samples: np.abs(distance).max() for samples, distance in error.items()}
    assert size[2**14] < 4e-3
    assert size[2**14] < size[2**8] / 3
    projected = error[2**14].reshape(6, -1) @ np.sign(expected.mean(axis=0)[1:]).ravel()
    z = projected.mean() / (projected.std(ddof=1) / 6**0.5)
    assert abs(z) < stats.t.isf(ALARM / 2, 5)


@pytest.mark.parametrize("x64", DTYPES)
def test_zeros_by_symmetry_and_by_cancellation(x64):
    """No mean of what is odd, whatever its round-off; what cancels does so to 100 eps."""
    theta = {name: tp.normal((N,)) for name in "uv"} | {"W": tp.normal((N, N), std=N**-0.5)}

    def centred(t):
        x = jnp.tanh(t["u"] + 0.5)
        return (x - x.mean()).sum() / x.shape[0] ** 0.5

    odd = {
        "product": lambda t: (t["v"] * jnp.tanh(t["u"] + 0.5)).sum(),
        "query": lambda t: (t["W"] @ jnp.tanh(t["u"] + 0.5)).sum(),
        "gate": lambda t: (t["v"] * (t["u"] > 0)).sum(),
    }
    with jax.enable_x64(x64):
        t, eps = sampled(theta, samples=2**10), float(jnp.finfo(jnp.result_type(float)).eps)
        for program in odd.values():
            found = tp.series(program)(t)
            assert [exponent for exponent, _ in found.terms] == [0.5]
            assert abs(float(found.at(0.5))) > 1e-3
        # A square beside it keeps its mean.
        assert tp.series(lambda t: (t["v"] ** 2).sum())(t).terms[0][0] == 1
        assert abs(float(tp.series(centred)(t).at(0))) < 100 * 2**5 * eps


# --- spellings


relu = jax.nn.relu
RECTIFIERS = {
    "twice": lambda h: relu(relu(h)),
    "after a mask": lambda h: relu(jnp.where(h > 0, h, 0.0)),
    "after a mask the other way round": lambda h: relu(jnp.where(jnp.less(0.0, h), h, 0.0)),
    "by a mask of its own": lambda h: jnp.where(relu(h) > 0, relu(h), 0.0),
    "three times": lambda h: relu(jnp.where(relu(h) > 0, relu(h), 0.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_rectifying_twice_is_rectifying_once(depth):
    """Two steps of training: no dead unit hangs on the lower terms of what is 0 altogether."""
    once = trained(depth, relu)
    assert np.abs(once[:, 2] - once[:, 0]).max() > 0.2
    names = RECTIFIERS if depth == 1 else ("twice", "three times")
    for name in names:
        found = trained(depth, RECTIFIERS[name])
        np.testing.assert_allclose(found, once, rtol=0, atol=2e-6, err_msg=name)


def test_rectified_values_are_rectified_in_one_term_too():
    """The same of a program by itself, also where the rectified vector is another's gate."""
    t = sampled({name: tp.normal((N,)) for name in "uv"}, terms=1)
    once = float(tp.limit(lambda t: (t["v"] ** 2 * relu(t["u"])).mean())(t))
    for rectifier in RECTIFIERS.values():
        found = tp.limit(lambda t, fn=rectifier: (t["v"] ** 2 * fn(t["u"])).mean())(t)
        assert float(found) == pytest.approx(once, rel=1e-6)
    # The positive part of h is 0 where h is negative; that of -h is not.
    both = tp.limit(lambda t: (relu(-relu(t["u"])) + relu(relu(-t["u"]))).mean())(t)
    assert float(both) == pytest.approx((2 * np.pi) ** -0.5, abs=0.01)
    other = tp.limit(lambda t: jnp.where(relu(t["u"]) > 0, t["u"] ** 2, relu(-t["u"])).mean())(t)
    assert float(other) == pytest.approx(0.5 + (2 * np.pi) ** -0.5, abs=0.02)


@pytest.mark.parametrize("power", [2, 3])
def test_powers_of_what_is_only_bounded(power):
    """Without central-limit terms ``f_0`` is 0 up to a remainder, and so is its square."""
    t = sampled({name: tp.normal((N,)) for name in "uv"}, init_output="zero")

    def program(t):
        return ((t["v"] * jnp.tanh(t["u"])).sum() / t["v"].shape[0] ** 0.5) ** power

    assert tp.limit(program)(t) == 0
    assert tp.series(program)(t).remainder == -power / 2


#: Refused, for the sign of a zero is asked for that no rule knows to be one.
HANGING = {
    "scaled": lambda h: relu(2 * relu(h)) / 2,
    "tied": lambda h: jnp.maximum(relu(h), 0),
    "gated": lambda h: relu(h * (h > 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HANGING)
def test_other_spellings_give_the_same_numbers_or_none(name):
    try:
        found = trained(1, HANGING[name])
    except tp.CancellationError:
        return
    np.testing.assert_allclose(found, trained(1, relu), rtol=0, atol=2e-6)


# --- compilation


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (2, "tanh")])
def test_compiled_and_uncompiled_runs_agree(depth, activation):
    """Two steps in float64, operation by operation and compiled: to 1e-12."""
    with jax.enable_x64(True):
        compiled = trained(depth, activation, samples=64, replicates=1)
        with fast_compilation():
            less = trained(depth, activation, samples=64, replicates=1)
        with jax.disable_jit():
            eager = trained(depth, activation, samples=64, replicates=1)
    assert np.abs(eager).max() > 0.1
    for other in (less, eager):
        np.testing.assert_allclose(other, compiled, rtol=0, atol=1e-12)


def test_a_rectifier_against_more_zeros_than_it_has_rows():
    """Operands may have axes of length one: what is known of one is not the shape of the result."""
    theta = {"u": tp.normal((tp.Width("n"),))}
    state = tp.sample(theta, jax.random.key(1), width=tp.inf, samples=2**8, terms=2)

    def positive(t):
        rectified = jnp.maximum(jax.nn.relu(t["u"][None]), jnp.zeros((4, t["u"].shape[0])))
        return rectified.mean(axis=-1), (rectified > 0).astype(float).mean(axis=-1)

    mean, share = tp.limit(positive)(state)
    np.testing.assert_allclose(mean, np.full(4, 1 / np.sqrt(2 * np.pi)), atol=0.01)
    np.testing.assert_allclose(share, np.full(4, 0.5), atol=0.01)


# --- one network, or two


@pytest.mark.slow
def test_calls_that_return_the_parameters_tell_of_one_network():
    """Two hidden layers, NTK: the loss of a step is that of the outputs read before it, if the
    parameters pass through the call that read them; else it is that of another random network."""
    model, ntk = tp.mlp(2, 3, activation="tanh"), tp.parameterizations.ntk
    predict, step = ntk.predict(model), ntk.step(model, "mse", RATE)
    theta = tp.sample(ntk.theta(model), jax.random.key(0), width=tp.inf, samples=256, terms=2)
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(MSE, jnp.float32)
    batch = (x[: len(MSE)], y)
    with fast_compilation():
        f, kept = tp.limit(lambda t: (predict(t, x), t))(theta)
        expected = 0.5 * np.mean((np.asarray(f[: len(MSE)]) - MSE) ** 2)
        _, same = tp.limit(step)(kept, batch)
        _, other = tp.limit(step)(theta, batch)
    np.testing.assert_allclose(same, expected, rtol=1e-5)
    assert abs(other - expected) > 1e-3


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("spelling", ["where", "cond", "select"])
def test_a_predicate_decides_a_power_of_the_width(spelling, terms):
    """A rate of the first step alone, ``n^(1/2)`` and then 1: at t = 1 the limit is E v^2."""
    theta = tp.sample({"v": tp.normal((N,))}, jax.random.key(0), width=tp.inf, terms=terms)

    def step(state):
        t, (theta, count) = state["t"], (state["theta"], state["theta"]["v"].shape[0])
        choose = {
            "where": lambda a, b: jnp.where(t == 0, a, b),
            "cond": lambda a, b: jax.lax.cond(t == 0, lambda: a, lambda: b),
            "select": lambda a, b: jax.lax.select(t == 0, a, b),
        }[spelling]
        rate = choose(jnp.float32(1) * count**0.5, jnp.float32(1))
        return rate * jnp.mean(theta["v"] ** 2)

    later = tp.leading(step)({"theta": theta, "t": jnp.int32(1)})
    np.testing.assert_allclose(later.coefficient, 1, rtol=0.05)
    assert later.exponent == 0
    first = tp.leading(step)({"theta": theta, "t": jnp.int32(0)})
    assert first.exponent == Fraction(1, 2)
