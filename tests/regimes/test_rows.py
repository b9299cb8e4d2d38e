"""What `tp.classify_step` says of parameters, and of what grows: beside counting."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings

HALF = Fraction(1, 2)
N = tp.Width("n")
BATCH = jnp.array([[0.3, -1.0, 0.5], [1.2, 0.4, -0.1]]), jnp.array([1.0, -0.5])
SMALL = {"samples": 128, "steps": 2}


def program(rates=(1, -1), init=None, optimizer=None):
    """One hidden layer, written out; learning rates n^rates; output weights n^-1."""
    theta = {"U": tp.normal((3, N)), "v": tp.normal((N,), std=N**-1 if init is None else init)}

    def loss(t, batch):
        x, y = batch
        return 0.5 * jnp.mean((jnp.tanh(x @ t["U"]) @ t["v"] - y) ** 2)

    def step(state, batch):
        t, memory = state if optimizer else (state, None)
        n = t["v"].shape[0]
        value, g = jax.value_and_grad(loss)(t, batch)
        if optimizer:
            g, memory = optimizer.update(jax.tree.map(lambda g: n * g, g), memory, t)
        factors = dict(zip("Uv", rates, strict=True))
        new = {k: t[k] - 0.1 * n ** factors[k] * g[k] for k in t}
        return ((new, memory) if optimizer else new), value

    return step, theta, (lambda t: (t, optimizer.init(t))) if optimizer else None


def exponents(row):
    return [None if power is None else power.exponent for power in row[1:]]


@pytest.mark.parametrize(
    ("scaling", "depth"),
    [
        ("mup", 1),
        pytest.param("ntk", 1, marks=pytest.mark.slow),
        pytest.param("mup", 2, marks=pytest.mark.slow),
        pytest.param("ntk", 2, marks=pytest.mark.slow),
        pytest.param("naive_ip", 2, marks=pytest.mark.slow),
    ],
)
def test_rows_are_those_that_are_counted(scaling, depth):
    """Measured ones are exact; none is a bound."""
    p, model = getattr(scalings, scaling), tp.mlp(depth, inputs=3)
    regime = tp.classify_step(p.step(model, "mse", 0.5), p.theta(model), BATCH, samples=128)
    counted = tp.classify(p, model)
    assert [row.parameter for row in regime.rows] == [
        f"theta['{row.parameter}']" for row in counted.rows
    ]
    assert [exponents(row) for row in regime.rows] == [exponents(row) for row in counted.rows]
    assert {power.known for row in regime.rows for power in row[1:] if power} == {"exact"}


@pytest.mark.parametrize(
    ("rates", "parameter", "what"),
    [((3 * HALF, -1), "U", "the preactivations"), ((1, -HALF), "v", "the outputs")],
)
def test_the_rate_that_is_too_large_is_named(rates, parameter, what):
    """With the line of what grows; with that rate it is stable, which is found by running it."""
    step, theta, _ = program(tuple(map(float, rates)))
    regime = tp.classify_step(step, theta, BATCH, **SMALL)
    mended = regime.mended()
    (fault,) = mended.faults
    assert (fault.parameter, fault.part, fault.step) == (f"theta['{parameter}']", "rate", 1)
    assert fault.power == (HALF, "exact")
    assert fault.what.startswith(f"{what} at ") and "test_rows.py:" in fault.what
    assert mended[f"theta['{parameter}']"].rate == -HALF
    assert mended.regime.name == "mean-field"
    text = regime.explain()
    assert f"by the update of theta['{parameter}']: lower its learning rate by n^(-1/2)." in text
    assert "Every parameter moves its layer." in text


def test_initial_values_that_are_too_large_are_named():
    step, theta, _ = program(init=1.0)
    mended = tp.classify_step(step, theta, BATCH, **SMALL).mended()
    first = mended.faults[0]
    assert (first.step, first.parameter, first.part) == (0, "theta['v']", "initial")
    assert first.power.exponent == HALF
    assert mended.regime.stable


def test_what_does_not_move_is_raised():
    step, theta, _ = program((HALF, -1))
    regime = tp.classify_step(step, theta, BATCH, **SMALL)
    assert regime.kernel
    text = regime.explain()
    assert "theta['U'] does not move its layer in the limit, it adds n^(-1/2): raise its " in text
    assert text.count("classify again") == 0
    mended = regime.mended(features=True)
    assert [change[1:] for change in mended.changes] == [(0, HALF, HALF), (0, 0, 0)]
    assert (mended.regime.name, mended.faults) == ("mean-field", ())


def test_a_large_readout_has_to_shrink_before_layers_move():
    """From the initial scale n^-1/2 of a readout, as in most scripts, to muP."""
    step, theta, _ = program((0, -1), init=N**-0.5)
    regime = tp.classify_step(step, theta, BATCH, **SMALL)
    assert regime.kernel
    mended = regime.mended(features=True)
    assert [change[1:] for change in mended.changes] == [(0, 1, 1), (-HALF, 0, 0)]
    assert mended.regime.name == "mean-field"
    text = regime.explain()
    assert "theta['v'] moves, its initial values make something grow" in text
    assert "raise its learning rate by n^1" in text


@pytest.mark.slow
def test_programs_are_mended_as_by_counting():
    """With the same factors."""
    p, model = scalings.ntk, tp.mlp(1, inputs=3)
    run = tp.classify_step(p.step(model, "mse", 0.5), p.theta(model), BATCH, **SMALL)
    counted = tp.classify(p, model).mended(features=True)
    mended = run.mended(features=True)
    assert [c[1:] for c in mended.changes] == [c[1:] for c in counted.changes]
    assert mended.regime.feature_learning and counted.regime.feature_learning


def test_what_needs_a_first_step_of_its_own_is_named():
    """The readout moves what is below only once it has moved itself."""
    step, theta, _ = program((1, -1), init=0.0)
    moved = tp.classify_step(step, theta, BATCH, samples=128, steps=1)
    text = moved.explain()
    assert "theta['U'] is not trained." in text


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (optax.sgd(-1.0, momentum=0.9), -3 * HALF),
        pytest.param(optax.adam(-1.0), -HALF, marks=pytest.mark.slow),
    ],
    ids=["momentum", "adam"],
)
def test_optimizers_of_optax(optimizer, rate):
    """The rate of v is too large by n^(1/2). The memory of the optimizer is no parameter."""
    step, theta, init = program((0, float(rate)), optimizer=optimizer)
    mended = tp.classify_step(step, theta, BATCH, init=init, **SMALL).mended()
    (fault,) = mended.faults
    assert (fault.parameter, fault.power.exponent) == ("state[0]['v']", HALF)
    assert mended.regime.name == "mean-field"


def test_a_regime_is_a_table():
    regime = tp.classify(scalings.mup, tp.mlp(2, inputs=3))
    assert repr(regime) == str(regime) == str(regime.table())
    assert "adds to its layer" in repr(regime)
