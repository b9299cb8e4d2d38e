"""Decisions about numbers that are zero within their sampling error.

`equal` is the difference of two averages that are equal in the limit, and for no identity. Nothing
that hangs on its sign is returned, whatever stands beside it in the array.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tplimit as tp

n = tp.Width("n")
THETA = {name: tp.normal((n,)) for name in "uvw"}
BOTH = pytest.mark.parametrize("noise", ["sobol", "random"])


def sampled(noise="sobol", key=0, **options):
    return tp.sample(THETA, jax.random.key(key), width=tp.inf, samples=1024, noise=noise, **options)


def sure(t):
    return jnp.mean(jnp.abs(t["v"]) ** 1.5)


def equal(t):
    return jnp.mean(jnp.abs(t["v"])) - jnp.mean(jnp.abs(t["w"]))


def pair(t):
    """One entry is known, of the other the term n^(-1/4) decides, which is not seen."""
    return jnp.stack([sure(t), equal(t) + 0.5 * t["v"].shape[0] ** -0.25])


DECISIONS = {
    "greater": lambda t: pair(t) > 0,
    "less or equal": lambda t: pair(t) <= 0,
    "equal": lambda t: pair(t) == 0,
    "not": lambda t: ~(pair(t) > 0),
    "and": lambda t: (pair(t) > 0) & (pair(t) < 5),
    "all": lambda t: jnp.all(pair(t) > 0),
    "any": lambda t: jnp.any(jnp.stack([pair(t)[1] > 0, pair(t)[0] < 0])),
    "exclusive": lambda t: jnp.logical_xor(pair(t) > 0, jnp.array([True, False])),
    "where": lambda t: jnp.where(pair(t) > 0, 1.0, 2.0),
    "sign": lambda t: jnp.sign(pair(t)),
    "heaviside": lambda t: jnp.heaviside(pair(t), 0.5),
    "copysign": lambda t: jnp.copysign(3.0, pair(t)),
    "rounding": lambda t: jnp.floor(1 + pair(t)),
    "integer": lambda t: (2 + pair(t)).astype(int),
    "remainder": lambda t: jnp.mod(pair(t), 1.0),
    "division by floor": lambda t: (2 + pair(t)) // 1,
    "division by floor, far from 0": lambda t: (50 + pair(t)) // 1,
    "mask of vectors": lambda t: jnp.mean(
        jnp.where((pair(t) > 0)[:, None], t["u"], 2 * t["u"]) ** 2, axis=1
    ),
    "where of vectors": lambda t: jnp.mean(jnp.where(pair(t)[1] > 0, t["u"], 2 * t["u"]) ** 2),
    "index": lambda t: jnp.argmax(jnp.stack([pair(t), -pair(t)]), 0),
    "index of the smallest": lambda t: jnp.argmin(jnp.stack([pair(t), 0 * pair(t)]), 0),
    "one of many": lambda t: jnp.take(jnp.arange(3.0), jnp.argmax(jnp.stack([pair(t)[1], 0.0]))),
    "sorted places": lambda t: jax.nn.one_hot(jnp.argmax(jnp.stack([0.0, pair(t)[1]])), 2),
    "count": lambda t: jnp.sum(pair(t) > 0),
    "share": lambda t: jnp.mean(pair(t) > 0),
    "branch": lambda t: lax.cond(pair(t)[1] > 0, lambda: 1.0, lambda: 2.0),
    "derivative of the absolute value": jax.grad(lambda x: jnp.sum(jnp.abs(x))),
    "derivative of the maximum": jax.grad(lambda x: jnp.max(jnp.stack([x[1], 0.0]))),
    "compensating": lambda t: jnp.sum(jnp.stack([pair(t)[1], -pair(t)[1]]) > 0),
    "saturating": lambda t: jnp.tanh(t["v"].shape[0] ** 0.5 * pair(t)),
    "in a loop": lambda t: lax.scan(lambda c, x: (c + (x > 0), None), 0, pair(t))[0],
    "in a long loop": lambda t: lax.scan(
        lambda c, x: (jnp.where(x > 0, c + 1, c), None), 0.0, jnp.tile(pair(t), 20)
    )[0],
    "decided before a long loop": lambda t: lax.scan(
        lambda c, x: (c + x * (pair(t)[1] > 0), None), 0.0, jnp.arange(20.0)
    )[0],
}
#: Of these a sample of finite width is another number: no values, or of order 1 by chance.
NOT_COMPARED = ("mask of vectors", "where of vectors", "remainder", "saturating")
OF_NUMBERS = ("derivative of the absolute value", "derivative of the maximum")


@BOTH
@pytest.mark.parametrize("name", DECISIONS)
def test_nothing_hangs_on_a_sign_that_is_not_known(name, noise):
    decide = DECISIONS[name]
    function = (lambda t: decide(pair(t))) if name in OF_NUMBERS else decide
    for terms in (1, 2):
        with pytest.raises(tp.LimitError, match=r"within the sampling error|is not known"):
            tp.limit(function)(sampled(noise, terms=terms))


def three(t):
    """Three numbers that are equal in truth."""
    return jnp.stack([jnp.mean(jnp.abs(t[name])) for name in "uvw"])


ODD = jnp.array([1.0, 1.0, 5.0])
CROWDS = {
    "largest": lambda t: jnp.take(ODD, jnp.argmax(three(t))),
    "smallest": lambda t: jnp.take(ODD[::-1], jnp.argmin(three(t))),
    "derivative": lambda t: jax.grad(jnp.max)(three(t)) @ ODD,
    "sorted": lambda t: lax.sort((three(t), ODD), num_keys=1)[1][-1],
    "best": lambda t: jnp.take(ODD, lax.top_k(three(t), 1)[1]),
    "rounded": lambda t: jnp.take(
        jnp.array([1.0, 1.0, 1.0, 5.0]), jnp.round(2 + 99 * equal(t)).astype(int)
    ),
}


@BOTH
@pytest.mark.parametrize("name", CROWDS)
def test_of_three_outcomes_two_that_agree_do_not_decide(name, noise):
    for key in range(3):
        with pytest.raises(tp.LimitError, match="within the sampling error"):
            tp.limit(CROWDS[name])(sampled(noise, key))


def test_what_is_below_a_crowd_decides_nothing():
    low = jnp.array([0.0, 1.0, 1.0])
    assert tp.limit(lambda t: jnp.take(ODD, jnp.argmax(three(t) - low)))(sampled()) == 1


def nothing(t):
    """Rounding leaves exactly 0, with an error."""
    return (1e8 + equal(t)) - 1e8


TIES = {
    "sign": lambda t: jnp.sign(nothing(t)),
    "greater": lambda t: nothing(t) > 0,
    "rounding": lambda t: jnp.ceil(nothing(t)),
    "sign bit": lambda t: jnp.copysign(1.0, nothing(t)),
    "index": lambda t: jnp.argmax(jnp.stack([nothing(t), 0 * sure(t)])),
    "index of three": lambda t: jnp.argmin(jnp.stack([nothing(t), sure(t) - sure(t), sure(t)])),
    "which": lambda t: jax.grad(lambda x: jnp.max(x))(jnp.stack([nothing(t), -nothing(t)])),
}


@BOTH
@pytest.mark.parametrize("name", TIES)
def test_a_coefficient_that_comes_out_as_zero_is_not_known(name, noise):
    for terms in (1, 2):
        with pytest.raises(tp.LimitError, match=r"vanish|not known|exactly zero"):
            tp.limit(TIES[name])(sampled(noise, terms=terms))


VALUES = {
    "division": lambda t: 1 / pair(t),
    "inverse root": lambda t: lax.rsqrt(jnp.abs(pair(t))),
    "logarithm": lambda t: jnp.log(jnp.abs(pair(t))),
    "inverse square": lambda t: pair(t) ** -2,
}


@BOTH
@pytest.mark.parametrize("name", VALUES)
def test_what_would_have_to_be_known_is_asked_of_every_entry(name, noise):
    with pytest.raises(tp.CancellationError, match="zero within the sampling error"):
        tp.limit(VALUES[name])(sampled(noise))


@BOTH
def test_leading_names_the_entries_that_are_not_known(noise):
    both = lambda t: jnp.stack([jnp.stack([sure(t), equal(t)]), jnp.ones(2)])
    with pytest.raises(tp.CancellationError, match=r"not known at \[0, 1\]: its coefficient"):
        tp.leading(both)(sampled(noise))


@BOTH
@pytest.mark.parametrize(
    "name",
    sorted(set(DECISIONS) - {*OF_NUMBERS, *NOT_COMPARED}),
)
def test_what_is_known_decides(name, noise, monkeypatch):
    """The same programs where the second entry is known as well: as at finite width."""
    known = lambda t: jnp.stack([sure(t), -0.3 * sure(t)])
    monkeypatch.setitem(globals(), "pair", known)
    function = DECISIONS[name]
    found = tp.limit(function)(sampled(noise))
    finite = function(tp.sample(THETA, jax.random.key(1), width=2000))
    np.testing.assert_array_equal(found, finite)


@BOTH
def test_symmetry_lets_the_next_term_decide(noise):
    """E[v relu(w)] is 0 by symmetry: with two terms n^(-1/4) is known to decide."""
    odd = lambda t: jnp.mean(t["v"] * jax.nn.relu(t["w"])) + 0.5 * t["v"].shape[0] ** -0.25
    signs = tp.limit(lambda t: jnp.stack([sure(t), odd(t)]) > 0)
    for key in range(6):
        assert np.all(signs(sampled(noise, key)))


MEAN = 0.860  # E|v|^1.5
HARMLESS = {
    "zero in any case": lambda t: jnp.where(pair(t) > 0, 1.0, 2.0) * pair(t),
    "equal outcomes": lambda t: jnp.where(pair(t)[1] > 0, 1.0, 1.0),
    "continuous there": lambda t: jnp.where(pair(t)[1] > 0, 1 + pair(t)[1], 1 - pair(t)[1]),
    "overruled": lambda t: (pair(t)[1] > 0) | (pair(t)[0] > 0),
    "one of many": lambda t: jnp.mean(jnp.concatenate([pair(t)[1:], jnp.arange(1.0, 40.0)]) > 0),
    "maximum": lambda t: jnp.maximum(pair(t), 0),
    "complements": lambda t: jnp.sum(jnp.stack([equal(t) > 0, -equal(t) > 0])),
    "not used, sure": lambda t: (jnp.sign(pair(t)), sure(t))[1],
    "branches that agree, sure": lambda t: lax.cond(
        pair(t)[1] > 0, lambda: sure(t), lambda: sure(t)
    ),
}


@BOTH
@pytest.mark.parametrize("name", HARMLESS)
def test_a_decision_that_changes_nothing_is_no_matter(name, noise):
    expected = {"maximum": [MEAN, 0], "zero in any case": [MEAN, 0], "overruled": True}.get(
        name, MEAN if "sure" in name else 1
    )
    np.testing.assert_allclose(tp.limit(HARMLESS[name])(sampled(noise)), expected, atol=0.06)


def test_the_error_names_the_line_of_the_user():
    def choose(t):
        return jnp.where(pair(t) > 0, 1.0, 2.0)

    with pytest.raises(tp.CancellationError) as raised:
        tp.limit(choose)(sampled())
    assert "A comparison is decided by terms that vanish" in str(raised.value)
    place = raised.value.location
    line = choose.__code__.co_firstlineno + 1
    assert (place.file, place.line) == (__file__, line) and place.function.endswith("choose")


def test_under_transformations():
    choose = lambda t, c: jnp.where(pair(t) > 0, 1.0, c)
    with pytest.raises(tp.CancellationError, match="decided by terms that vanish"):
        tp.limit(jax.jit(choose))(sampled(), 2.0)
    with pytest.raises(tp.CancellationError, match="decided by terms that vanish"):
        tp.limit(jax.vmap(choose, (None, 0)))(sampled(), jnp.arange(3.0))


# --- training

X = jax.random.normal(jax.random.key(5), (6, 3))
Y = jnp.sign(X[:, 0] * X[:, 1])
NETWORK = {"U": tp.normal((3, n)), "v": tp.normal((n,), std=1 / n)}


def predict(t):
    return jax.nn.relu(X @ t["U"]) @ t["v"]


LOSSES = {
    "hinge": lambda f: jnp.mean(jax.nn.relu(1 - Y * f)),
    "Huber": lambda f: jnp.mean(
        jnp.where(jnp.abs(Y - f) < 0.5, (Y - f) ** 2, jnp.abs(Y - f) - 0.25)
    ),
}


def step_of(loss):
    def step(t):
        grads = jax.grad(lambda t: loss(predict(t)))(t)
        size = t["v"].shape[0]
        return {"U": t["U"] - 0.1 * size * grads["U"], "v": t["v"] - 0.1 / size * grads["v"]}

    return step


@pytest.mark.parametrize("name", LOSSES)
def test_points_cross_a_kink_of_the_loss(name):
    """Trained across the kink, one step at a time: no refusal, and networks do the same."""
    loss = LOSSES[name]
    step, value = step_of(loss), lambda t: loss(predict(t))
    state = tp.sample(NETWORK, jax.random.key(0), width=tp.inf, samples=1024)
    network = tp.sample(NETWORK, jax.random.key(1), width=20_000)
    limit, limit_value = tp.limit(step), tp.limit(value)
    finite = jax.jit(step)
    for number in range(24):
        state, network = limit(state), finite(network)
        if number % 6 == 5:
            assert abs(limit_value(state) - value(network)) < 0.02


def test_records_of_replicates_warn():
    """A share of right answers while points cross: each replicate decides for itself."""
    share = lambda t: jnp.mean((predict(t) > 0) == (Y > 0))
    step = step_of(LOSSES["hinge"])
    theta = NETWORK | {"v": tp.normal((n,), std=1 / n, mean=0.3 / n)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = tp.train(
            lambda t, _: (step(t), jnp.zeros(())), theta, jnp.zeros(12), width=tp.inf,
            replicates=3, samples=4096, noise="random", observe=share, key=jax.random.key(0),
        )  # fmt: skip
    assert np.all((run.observations >= 0) & (run.observations <= 1))
    assert any("A record hangs on a decision that is not sure" in str(w.message) for w in caught)


@BOTH
@pytest.mark.parametrize("terms", [1, 2])
def test_a_vector_hangs_on_a_number_that_is_zero(noise, terms):
    """One number decides about all coordinates, in the same call or the next."""
    gated = lambda t: jnp.where(pair(t)[1] > 0, t["v"], 2 * t["v"])
    with pytest.raises(tp.CancellationError, match="decided by terms that vanish"):
        tp.limit(lambda t: jnp.mean(gated(t) ** 2))(sampled(noise, terms=terms))
    with pytest.raises(tp.CancellationError, match="decided by terms that vanish"):
        tp.limit(gated)(sampled(noise, terms=terms))
    branch = lambda t: lax.cond(pair(t)[1] > 0, lambda: t["v"], lambda: 2 * t["v"])
    with pytest.raises(tp.CancellationError, match="decided by terms that vanish"):
        tp.limit(branch)(sampled(noise, terms=terms))
