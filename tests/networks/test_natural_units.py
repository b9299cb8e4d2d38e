"""Optimizers in `Parameterization.step`: exponents d, what the optimizer sees, what it moves.

The powers of activations and outputs are in `tests/regimes`, beside those of gradient descent; the
limit is compared with networks in `tests/training/test_optimizers.py`.
"""

from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.networks.optimizers import degree, intensive
from tplimit.parameterizations import Parameterization

HALF = Fraction(1, 2)
X = np.random.default_rng(0).normal(size=(4, 3))
Y = np.sin(2 * X[:, 0])

#: Exponents d and c + d of three hidden layers; golikov has one power for all layers.
EXPONENTS = {
    "mup": ((1, 3 * HALF, 3 * HALF, 1), (0, HALF, HALF, 0)),
    "hp": ((1, 3 * HALF, 3 * HALF, 1), (0, HALF, HALF, 0)),
    "hpz": ((1, 3 * HALF, 3 * HALF, 1), (0, HALF, HALF, 0)),
    "ntk": ((HALF, 1, 1, HALF), (HALF, 1, 1, HALF)),
    "standard": ((0,) * 4, (0,) * 4),
    "naive_ip": ((1, 2, 2, 1), (0,) * 4),
    "mean_field": ((1, 2, 2, 1), (0,) * 4),
    "ip_llr": ((1, 2, 2, 1), (0,) * 4),
    "ip_bias": ((1, 2, 2, 1), (0,) * 4),
    "ip_non_centered": ((1, 2, 2, 1), (0,) * 4),
    "ic_mean_field": ((1, 2, 2, 1), (0,) * 4),
    "sym_default": ((HALF, 1, 1, HALF), (0,) * 4),
    "golikov(-0.5, 0.25)": ((HALF, 1, 1, HALF), (HALF / 2,) * 4),
    "intermediate(0.75)": ((3 * HALF / 2, 3 * HALF, 3 * HALF, 3 * HALF / 2), (HALF / 2,) * 4),
}
NAMED = {
    "golikov(-0.5, 0.25)": scalings.golikov(-0.5, 0.25),
    "intermediate(0.75)": scalings.intermediate(0.75),
}


def named(name):
    return NAMED.get(name) or getattr(scalings, name)


def network(depth=2, **how):
    return tp.mlp(depth, inputs=3, **how)


def train(p, model, width, optimizer, steps=3, lr=0.1, reference=None):
    """Effective weights before and after each step, and the states."""
    p = p if reference is None else p(reference=reference)
    step = p.step(model, "mse", lr, optimizer)
    states = [tp.sample(p.theta(model), jax.random.key(3), width=width)]
    for _ in range(steps):
        states.append(step(states[-1], (X, Y))[0])
    return [p.effective(model, state) for state in states], states


def assert_same(one, two, rtol=1e-9):
    for name in two:
        np.testing.assert_allclose(one[name], two[name], rtol=rtol, atol=1e-12, err_msg=name)


# Exponents ----------------------------------------------------------------------------------------


def test_every_parameterization_has_its_exponents():
    for name, (d, update) in EXPONENTS.items():
        model = network(3)
        found, c = named(name).exponents("d", model), named(name).exponents("c", model)
        assert found == d, name
        assert tuple(map(sum, zip(c, found, strict=True))) == update, name
    known = {k for k in scalings.__all__ if isinstance(getattr(scalings, k), Parameterization)}
    assert known | {"golikov", "intermediate"} == {name.partition("(")[0] for name in EXPONENTS}


def test_output_weights_that_start_at_zero_have_the_size_of_their_updates():
    assert scalings.mup(std=(1.0, 1.0, 0.0)).exponents("d", 2) == scalings.mup.exponents("d", 2)
    zero = scalings.ntk(std=(1.0, 1.0, 0.0))
    assert zero.exponents("d", 2) == (1, 3 * HALF, HALF)
    assert zero(mean=(0.0, 0.0, 1.0)).exponents("d", 2) == scalings.ntk.exponents("d", 2)


def test_biases_have_the_exponents_of_their_own_factors():
    """∇_b f is that of the preactivations, n^-1 but for the outputs, times n^-a of the bias."""
    p, model = scalings.naive_ip, network(bias=True)
    assert p._powers(model, "d") == {"W1": 1, "W2": 2, "W3": 1, "b1": 1, "b2": 2, "b3": 1}
    p = p(biases=Parameterization(0, 0, (-1, -1, 0)))
    assert p._powers(model, "d") == {"W1": 1, "W2": 2, "W3": 1, "b1": 1, "b2": 1, "b3": 0}


def slopes(sizes, widths):
    """Fitted exponents of the numbers `sizes(n, key)`, of their geometric means over four seeds."""
    logs = [[np.log(sizes(n, jax.random.key(seed))) for seed in range(4)] for n in widths]
    return np.polyfit(np.log(widths), np.mean(logs, axis=1), 1)[0]


def linear(f, y):
    """A loss of constant derivative: no residual shrinks."""
    return -jnp.mean(f * y)


def root_mean_squares(arrays):
    return jnp.stack([jnp.sqrt(jnp.mean(a**2)) for a in arrays])


@pytest.mark.parametrize("name", ["mup", "ntk", "ntk from zero", "intermediate(0.75)"])
def test_d_is_the_order_of_the_gradients(name):
    """After two steps of gradient descent, so small that updates of less order do not show."""
    p = scalings.ntk(std=(1.0, 1.0, 0.0)) if name == "ntk from zero" else named(name)
    model = network(1 if name.startswith("intermediate") else 2, bias=True)
    step, predict = p.step(model, linear, 0.1), p.predict(model)

    def sizes(n, key):
        state = tp.sample(p.theta(model), key, width=n)
        for _ in range(2):
            state, _ = step(state, (X, Y))
        return root_mean_squares(jax.grad(lambda t: jnp.sum(predict(t, X[:1])))(state).values())

    expected = [-float(d) for d in p._powers(model, "d").values()]
    np.testing.assert_allclose(slopes(sizes, (128, 512)), expected, atol=0.1)


# Optimizers of degree 1 ---------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", EXPONENTS)
def test_momentum_is_that_of_the_gradients(name):
    """v ← 0.9 v + ∇_w loss, w ← w - lr n^-c v, with the first step's own rates."""
    p, model, n = named(name), network(3, bias=True), 32
    _, states = train(p, model, n, optax.sgd(1.0, momentum=0.9), lr=0.05)
    predict, v = p.predict(model), 0.0
    n = n / p.reference
    loss = lambda t, rest: scalings.mse(predict(rest | t, X), Y)
    for t, (before, after) in enumerate(pairwise(states)):
        theta = {k: before[k] for k in model.shapes(1)}
        g = jax.grad(loss)(theta, {k: after[k] for k in after if k == "origin"})
        v = jax.tree.map(lambda v, g: 0.9 * v + g, v or jax.tree.map(jnp.zeros_like, g), g)
        rates = p._powers(model, "c" if t else "first")
        lost = dict(zip(theta, p.factors("shrink", model), strict=False)) if t == 0 else {}
        for k in theta:
            kept = n ** -float(lost.get(k, 0)) * theta[k]
            expected = kept - 0.05 * n ** -float(rates[k]) * v[k]
            np.testing.assert_allclose(after[k], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", EXPONENTS)
def test_gradient_descent_by_name_is_gradient_descent(name):
    model = network(3, bias=True)
    by_name, _ = train(named(name), model, 32, optax.sgd(1.0))
    plain, _ = train(named(name), model, 32, None)
    for one, two in zip(by_name, plain, strict=True):
        assert_same(one, two)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["mup", "ntk", "intermediate(0.75)"])
def test_weight_decay_is_of_order_one(name):
    """w ← (1 - lr·decay) w - ..., whatever the width and the exponents."""
    p, model = named(name), network()
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    (start, with_decay), _ = train(p, model, 64, decay, 1)
    (_, without), _ = train(p, model, 64, None, 1)
    for k in start:
        np.testing.assert_allclose(with_decay[k], without[k] - 0.1 * 0.5 * start[k], atol=1e-12)


# Others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sign_sgd"])
@pytest.mark.parametrize("name", [name for name in EXPONENTS if name not in ("ip_llr", "ip_bias")])
def test_updates_have_the_powers_of_their_exponents(name, optimizer):
    """Effective weights move by n^-(a + c + d) in each of two steps."""
    p, model = named(name)(shrink=0), network()
    step = p.step(model, linear, 0.002, getattr(optax, optimizer)(1.0))

    def sizes(n, key):
        one = tp.sample(p.theta(model), key, width=n)
        two, _ = step(one, (X, Y))
        weights = [p.effective(model, t) for t in (one, two, step(two, (X, Y))[0])]
        moves = [jax.tree.map(jnp.subtract, b, a) for a, b in pairwise(weights)]
        return root_mean_squares(a for move in moves for a in move.values())

    expected = [-float(sum(e)) for e in zip(*(p.exponents(w, model) for w in "acd"), strict=True)]
    np.testing.assert_allclose(slopes(sizes, (64, 256)), 2 * expected, atol=0.1)


@pytest.mark.usefixtures("float64")
def test_mup_is_that_of_tensor_programs_ivb():
    """Table 1 of arXiv 2308.01814: a = (0, 0, 1), b = (0, 1/2, 0), rates n^-(0, 1, 0), d = 1."""
    model, adam = network(3), optax.adam(1.0, eps=1e-3)
    ivb = Parameterization((0, 0, 1), (0, HALF, 0), (-1, 0, -1))
    assert ivb.exponents("d", model) == (1,) * 4
    c, d = ivb.exponents("c", model), ivb.exponents("d", model)
    assert tuple(map(sum, zip(c, d, strict=True))) == (0, 1, 1, 0)
    updates = [
        [sum(e) for e in zip(*(p.exponents(w, model) for w in "acd"), strict=True)]
        for p in (scalings.mup, ivb)
    ]
    assert updates[0] == updates[1] == [0, 1, 1, 1]
    for one, two in zip(
        train(ivb, model, 64, adam)[0], train(scalings.mup, model, 64, adam)[0], strict=True
    ):
        assert_same(one, two)
    # Written out, as in docs/optimizers.md: eps has the size of a gradient.
    n, lr = 64, 0.1
    rule = lambda rate: optax.adam(rate, eps=1e-3 / n)
    written = optax.partition(
        {"matrix": rule(lr / n), "vector": rule(lr)},
        {"W1": "vector", "W2": "matrix", "W3": "matrix", "W4": "vector"},
    )
    theta = tp.sample(ivb.theta(model), jax.random.key(3), width=n)
    predict, memory = ivb.predict(model), written.init(theta)
    for after in train(ivb, model, n, adam)[0][1:]:
        g = jax.grad(lambda t: scalings.mse(predict(t, X), Y))(theta)
        u, memory = written.update(g, memory, theta)
        theta = optax.apply_updates(theta, u)
        assert_same(ivb.effective(model, theta), after)


COVARIANT = {
    "adamw": optax.adamw(1.0, weight_decay=0.3),
    "lamb": optax.lamb(1.0, weight_decay=0.3),
    "lars": optax.lars(1.0, weight_decay=0.3),
    "adafactor": optax.adafactor(1.0, min_dim_size_to_factor=8),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", COVARIANT)
@pytest.mark.parametrize("name", ["mup", "ntk", "naive_ip", "sym_default"])
def test_a_shift_between_multiplier_and_initial_scale_changes_nothing(name, optimizer):
    """(a, b, c) → (a + θ, b - θ, c - 2θ) is the same training: z is one and the same."""
    p, model = named(name), network(bias=True)
    shift = {"a": 0.75, "b": -0.75, "c": -1.5}
    shifted = p(**{k: [e + by for e in p.exponents(k, model)] for k, by in shift.items()})
    runs = [train(q, model, 16, COVARIANT[optimizer])[0] for q in (p, shifted)]
    for one, two in zip(*runs, strict=True):
        assert_same(one, two, rtol=1e-7)


def test_at_the_reference_width_nothing_depends_on_the_exponents():
    model, adamw = network(), COVARIANT["adamw"]
    names = [name for name in EXPONENTS if name not in ("standard", "golikov(-0.5, 0.25)")]
    runs = [
        train(
            named(name)(
                input_scale=1.0,
                std=1.0,
                shrink=0,
                first=None,
                mean=0.0,
                biases=None,
                initial_a=None,
            ),
            model,
            16,
            adamw,
            reference=16.0,
        )[0]
        for name in names
    ]
    for run in runs:
        for one, two in zip(run, runs[0], strict=True):
            for k in two:
                np.testing.assert_array_equal(one[k], two[k])


# A first step of its own --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ip_llr", "ip_bias"])
def test_rates_of_a_first_step_are_for_updates_that_shrink_with_the_gradients(name):
    p, model = getattr(scalings, name), network(3, bias=True)
    advice = rf"{name} has learning rates of its own in the first step.*such as naive_ip"
    for optimizer in (optax.adam(1.0), optax.sign_sgd(1.0), optax.clip(1.0)):
        with pytest.raises(ValueError, match=advice):
            p.step(model, "mse", 0.1, optimizer)
        with pytest.raises(ValueError, match=advice):
            tp.classify(p, model, optimizer)
    p.step(model, "mse", 0.1, optax.sgd(1.0, momentum=0.9, nesterov=True))
    # A first step that is like the others, and one that loses initial weights, have none.
    scalings.ip_llr.step(network(1), "mse", 0.1, optax.adam(1.0))
    scalings.hpz.step(network(2), "mse", 0.1, optax.adam(1.0))


# The degree of an optimizer -----------------------------------------------------------------------

DEGREES = {
    "sgd": (optax.sgd(1.0), 1, True),
    "nesterov": (optax.sgd(1.0, momentum=0.9, nesterov=True), 1, True),
    "decay": (optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)), 1, True),
    "schedule-free": (optax.contrib.schedule_free_sgd(1.0), 1, True),
    "clipping above": (optax.clip(10.0), 1, True),
    "clipping": (optax.clip(1.0), None, True),
    "clipping below": (optax.clip(0.1), 0, True),
    "clipping by norm": (optax.clip_by_global_norm(0.1), 0, False),
    "adam": (optax.adam(1.0), 0, True),
    "adam, large eps": (optax.adam(1.0, eps=1e3), 1, True),
    "adam, middle eps": (optax.adam(1.0, eps=1.0), None, True),
    "adamw": (optax.adamw(1.0, weight_decay=0.5), 0, True),
    "adagrad": (optax.adagrad(1.0), 0, True),
    "rmsprop": (optax.rmsprop(1.0), 0, True),
    "lion": (optax.lion(1.0), 0, True),
    "sign_sgd": (optax.sign_sgd(1.0), 0, True),
    "adafactor": (optax.adafactor(1.0), 0, True),
    "lars": (optax.lars(1.0), 0, False),
    "lamb": (optax.lamb(1.0), 0, False),
    "muon": (optax.contrib.muon(1.0), 0, False),
    "nothing yet": (optax.MultiSteps(optax.adam(1.0), 2).gradient_transformation(), None, True),
}


@pytest.mark.parametrize("name", DEGREES)
def test_degrees(name):
    optimizer, k, entries = DEGREES[name]
    assert degree(optimizer) == k
    assert intensive(optimizer) == entries


def test_an_optimizer_may_tell_parameters_apart():
    """Its labels are the names of the model at hand."""
    kinds = {"a": optax.adam(1.0), "b": optax.sgd(1.0)}
    model = network(1, bias="first")
    for labels, k in (("aaa", 0), ("bbb", 1), ("abb", None)):
        chosen = optax.partition(kinds, dict(zip(("W1", "b1", "W2"), labels, strict=True)))
        assert degree(chosen, model) == k


def test_a_step_may_be_made_inside_of_a_function_that_is_traced():
    model, momentum = network(3, bias=True), optax.sgd(1.0, momentum=0.9)
    theta = tp.sample(scalings.ip_llr.theta(model), jax.random.key(0), width=8)
    move = lambda theta: scalings.ip_llr.step(model, "mse", 0.1, momentum)(theta, (X, Y))[1]
    np.testing.assert_allclose(jax.jit(move)(theta), move(theta), rtol=1e-5)
