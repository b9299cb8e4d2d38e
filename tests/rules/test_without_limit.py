"""Numbers that have no limit, in programs that do: extrema over a width, the logarithm of it.

``softmax`` and ``logsumexp`` subtract the largest entry and add it again; their limits are those of
the same mathematics without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from oracles.helpers import dense

import tplimit as tp

n = tp.Width("n")
VECTORS = {name: tp.normal((n,)) for name in "vwu"}
DECLARED = {**VECTORS, "W": tp.normal((n, n), std=n**-0.5), "U": tp.normal((3, n))}


def width(t):
    return float(t["v"].shape[0])


def sampled(declared=DECLARED, *, size=tp.inf, samples=4096, noise="sobol", terms=1):
    if size != tp.inf:
        return tp.sample(declared, jax.random.key(1), width=size)
    return tp.sample(
        declared, jax.random.key(1), width=size, samples=samples, noise=noise, terms=terms
    )


# --- averages over a softmax

#: Programs and their limits, for coordinates N(0, 1).
CLOSED = {
    "softmax": (lambda t: jnp.sum(jax.nn.softmax(t["v"]) * t["v"]), 1.0),
    "square": (lambda t: jnp.sum(jax.nn.softmax(t["v"]) * t["v"] ** 2), 2.0),
    "minimum": (lambda t: jnp.sum(jax.nn.softmax(-t["v"]) * t["v"]), -1.0),
    "logsumexp": (lambda t: jax.nn.logsumexp(t["v"]) - jnp.log(width(t)), 0.5),
    "numpy's logarithm": (lambda t: jax.nn.logsumexp(t["v"]) - np.log(width(t)), 0.5),
    "half the logarithm": (
        lambda t: jax.nn.logsumexp(t["v"]) - 2 * jnp.log(jnp.sqrt(width(t))),
        0.5,
    ),
    "log_softmax": (lambda t: jnp.mean(jax.nn.log_softmax(t["v"])) + jnp.log(width(t)), -0.5),
    "entropy": (
        lambda t: jnp.log(width(t)) + jnp.sum(jax.nn.softmax(t["v"]) * jax.nn.log_softmax(t["v"])),
        0.5,
    ),
    "gradient": (
        lambda t: jnp.sum(jax.grad(lambda v: jax.nn.logsumexp(v))(t["v"]) * t["v"]),
        1.0,
    ),
    "logarithms of sums": (
        lambda t: jnp.log(jnp.sum(t["v"] ** 2)) - jnp.log2(jnp.sum(t["w"] ** 2)) * np.log(2),
        0.0,
    ),
    "of several": (
        lambda t: jnp.sum(jax.nn.softmax(t["U"], axis=1) * t["U"], axis=1),
        [1.0, 1.0, 1.0],
    ),
    "twice the same": (lambda t: jnp.max(t["v"]) - jnp.max(t["v"]) + jnp.mean(t["w"] ** 2), 1.0),
}


@pytest.mark.parametrize(("terms", "noise"), [(1, "sobol"), (2, "random")])
@pytest.mark.parametrize("name", CLOSED)
def test_what_cancels_may_be_any_number(name, terms, noise):
    """Within five of the stated errors: a false alarm once in a million."""
    program, exact = CLOSED[name]
    found = tp.leading(lambda t: 3 + program(t))(sampled(noise=noise, terms=terms))
    assert found.exponent == 0
    assert np.all(np.abs(found.coefficient - 3 - np.array(exact)) <= 5 * found.stderr + 1e-5)


def softmax_layers(t):
    """A softmax over the width as a layer, twice."""
    x = jnp.tanh(t["W"] @ t["v"])
    for _ in range(2):
        x = width(t) * jax.nn.softmax(t["W"] @ x) * t["w"]
    return jnp.mean(jnp.tanh(x) ** 2)


def softmax_in_a_loop(t):
    def step(x, _):
        return jnp.tanh(width(t) * jax.nn.softmax(t["W"] @ x) + t["u"]), jnp.mean(x**2)

    x, sizes = lax.scan(step, t["v"], length=9)
    return jnp.stack([jnp.mean(x * t["u"]), sizes[-1]])


def training(t):
    """A step of gradient descent through a softmax over the width."""

    def loss(t):
        scores = jax.nn.softmax(jnp.tanh(t["U"].T @ jnp.array([1.0, -0.5, 0.2])))
        return (jnp.sum(scores * t["v"] * jnp.tanh(t["w"] + t["v"])) - 1.0) ** 2

    moved = jax.tree.map(lambda p, g: p - width(t) * g, t, jax.grad(loss)(t))
    return loss(moved)


@pytest.mark.parametrize("program", [softmax_layers, softmax_in_a_loop, training])
def test_softmax_over_a_width_against_networks(program):
    """Averages of 24 networks of width 1000; the false-alarm rate is 1e-4 a number."""
    networks = dense(program, DECLARED, 1000, 24)
    limit = np.ravel(tp.limit(program)(sampled()))
    error = np.std(networks, axis=0, ddof=1) / len(networks) ** 0.5
    assert np.all(np.abs(np.mean(networks, axis=0) - limit) <= 4 * error + 0.02)


REFUSED = {
    "maximum": lambda t: jnp.max(t["v"]),
    "difference": lambda t: jnp.max(t["v"]) - jnp.max(t["w"]),
    "minimum": lambda t: jnp.mean(t["v"] ** 2) * jnp.min(t["v"]),
    "decision": lambda t: jnp.where(jnp.max(t["v"]) > 2, 1.0, 0.0),
    "truth value": lambda t: jnp.max(t["v"]) > 2,
    "far away": lambda t: jnp.where(jnp.max(t["v"]) > 10, 1.0, 0.0),
    "sign": lambda t: jnp.sign(jnp.min(t["v"])),
    "integer": lambda t: jnp.floor(jnp.max(t["v"])).astype(int),
    "rows": lambda t: jnp.diff(jnp.max(t["U"], axis=1)),
    "quotient": lambda t: jnp.max(t["v"]) / jnp.max(t["u"]),
    "scaled": lambda t: jnp.sum(jax.nn.softmax(jnp.sqrt(width(t)) * t["v"]) * t["v"]),
    "only subtracted": lambda t: jnp.mean(jnp.exp(t["v"] - jnp.max(t["v"]))),
    "small beside something large": lambda t: jnp.stack(
        [1e7 * jnp.mean(t["v"] ** 2), jnp.max(t["v"])]
    ),
    "all": lambda t: jnp.all(t["v"] > -3.0),
    "in a loop": lambda t: lax.scan(
        lambda x, _: (x + 1, jnp.max(t["v"] * x)), jnp.zeros(()), length=9
    )[1],
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_what_hangs_on_an_extremum_is_refused_with_its_line(name, terms):
    with pytest.raises(tp.NoLimitError, match="over a width has no limit") as caught:
        tp.limit(REFUSED[name])(sampled(samples=512, terms=terms))
    assert __file__ in str(caught.value)


GROWING = {
    "logarithm": lambda t: jnp.log(width(t)),
    "logsumexp": lambda t: jax.nn.logsumexp(t["v"]),
    "product": lambda t: jnp.mean(t["v"] ** 2) * jnp.log(width(t)),
    "quotient": lambda t: jnp.mean(t["v"] ** 2) / jnp.log(width(t)),
    "once too often": lambda t: jax.nn.logsumexp(t["v"]) - 2 * jnp.log(width(t)),
}


@pytest.mark.parametrize("name", GROWING)
def test_logarithms_of_the_width_that_stay_are_refused(name):
    with pytest.raises(tp.NoLimitError, match="logarithm of the width") as caught:
        tp.limit(GROWING[name])(sampled(samples=512))
    assert __file__ in str(caught.value)


def test_a_finite_width_has_extrema_and_a_logarithm():
    size = tp.Deferred(300)

    def program(t):
        return jnp.sum(t["v"] >= jnp.max(t["v"])), jnp.log(width(t)), jnp.all(t["v"] > -9.0)

    count, log, every = tp.limit(program)(sampled(size=size))
    assert count == 1
    assert every
    assert abs(log - np.log(300)) < 1e-5


# --- whether all is finite


def test_all_coordinates_are_finite():
    t = sampled(samples=512)
    everywhere = lambda t: [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(t)]
    assert all(tp.limit(everywhere)(t))
    assert not tp.limit(lambda t: jnp.isfinite(jnp.exp(200 * t["v"])).all())(t)
    by_row = tp.limit(lambda t: jnp.isfinite(t["U"]).all(1))(t)
    np.testing.assert_array_equal(by_row, [True] * 3)
    with pytest.raises(tp.LimitError, match="over some of its axes"):
        tp.limit(lambda t: jnp.isfinite(t["W"]).all(1))(t)


def test_updates_that_are_applied_if_finite():
    plain, guarded = optax.sgd(0.1), optax.apply_if_finite(optax.sgd(0.1), 3)

    def step(optimizer):
        def run(t):
            loss = lambda t: jnp.mean(jnp.tanh(t["W"] @ jnp.tanh(t["v"])) * t["w"] + t["w"] ** 2)
            gradient = jax.tree.map(lambda g: width(t) * g, jax.grad(loss)(t))
            updates, _ = optimizer.update(gradient, optimizer.init(t), t)
            return loss(optax.apply_updates(t, updates))

        return run

    t = sampled(samples=512)
    assert abs(tp.limit(step(guarded))(t) - tp.limit(step(plain))(t)) < 1e-6


# --- numbers with lower powers of the width


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.2, 5.0),
    st.floats(-20.0, 20.0),
    st.sampled_from([1.0, 0.5, 0.25]),
    st.sampled_from([0.0, 0.5, -1.0]),
)
def test_lower_powers_of_the_width(c, a, step, power):
    number = lambda t: (c + a * width(t) ** -step) * width(t) ** power
    share = abs(a) / c * 13440**-step
    t = sampled(samples=256)
    program = lambda t: number(t) * jnp.mean(t["v"] ** 2)
    if share > 0.1:  # whether it is taken or refused, it is not taken for another number
        try:
            found = tp.leading(program)(t)
        except tp.NoLimitError:
            return
    else:
        found = tp.leading(program)(t)
    assert abs(float(found.exponent) - power) < 1e-9
    assert abs(found.coefficient / c - 1) < 1e-3


RATIOS = {
    "n/(n+100)": (lambda N: N / (N + 100), 1.0),
    "(n-1)/n": (lambda N: (N - 1) / N, 1.0),
    "1+n^-1/2": (lambda N: 1 + N**-0.5, 1.0),
    "sqrt(1+1/n)": (lambda N: np.sqrt(1 + 1 / N), 1.0),
    "(1+3/n)^n": (lambda N: (1 + 3 / N) ** N, np.exp(3.0)),
    "1/(1+n^-1/2)": (lambda N: 1 / (1 + N**-0.5), 1.0),
    "2 n^1/2 - n^1/4 over n^1/2": (lambda N: (2 * N**0.5 - N**0.25) / N**0.5, 2.0),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RATIOS)
def test_ratios_with_a_limit(name, dtype):
    number, exact = RATIOS[name]
    with jax.enable_x64(dtype == "float64"):
        t = sampled(VECTORS, samples=256)
        found = tp.limit(
            lambda t: jnp.asarray(number(width(t)), dtype) * t["v"] @ t["v"] / width(t)
        )
        assert abs(found(t) / exact - 1) < 1e-4


@pytest.mark.parametrize(
    "number",
    [
        lambda N: np.log(N) ** 2,
        lambda N: 1 / np.log(N),
        lambda N: np.log(np.log(N)),
        lambda N: np.sin(N),
        lambda N: min(N, 10000.0),
        lambda N: 1 + 0.1 / np.log(N),
        lambda N: 1 + N**-0.1,
        lambda N: 1 + 1e-3 * np.exp(-N / 1e6),
        lambda N: 1 + 1e-4 * min(1.0, 1e6 / N),
        lambda N: N ** (1 / np.log(np.log(N))),
    ],
)
def test_numbers_that_follow_no_power_are_refused(number):
    with pytest.raises(tp.NoLimitError, match="no power") as caught:
        tp.limit(lambda t: number(width(t)) * jnp.mean(t["v"] ** 2))(sampled(samples=256))
    assert __file__ in str(caught.value)


COMPARED = {
    "less": (lambda t, i: i < len(t["v"]), True),
    "half of it": (lambda t, i: 2 * i >= len(t["v"]) // 2, False),
    "a square": (lambda t, i: i**2 < len(t["v"]), True),
    "equal": (lambda t, i: i == len(t["v"]), False),
    "several": (lambda t, i: jnp.arange(3) + i < len(t["v"]), [True] * 3),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", COMPARED)
def test_integers_beside_the_width(name, terms):
    program, exact = COMPARED[name]
    found = tp.limit(program)(sampled(samples=256, terms=terms), jnp.int32(3))
    np.testing.assert_array_equal(found, exact)
