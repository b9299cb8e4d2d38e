"""What `Regime.explain` names is at fault, and what it advises mends it: counted."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.parameterizations import Parameterization

HALF = Fraction(1, 2)
QUARTERS = st.integers(-6, 6).map(lambda k: Fraction(k, 4))
OPTIMIZERS = [None, optax.sgd(1.0, momentum=0.9), optax.adam(1.0)]


@st.composite
def programs(draw):
    """Any exponents of scales, of rates, of a first step, of biases, and any optimizer."""
    depth = draw(st.integers(1, 4))
    activation = draw(st.sampled_from(["tanh", "relu", "relu2", "sigmoid", "gelu"]))
    model = tp.mlp(depth, inputs=3, activation=activation, bias=draw(st.booleans()))
    many = st.lists(QUARTERS, min_size=depth + 1, max_size=depth + 1)
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    first = draw(st.none() | many) if optimizer is not OPTIMIZERS[2] else None
    own = draw(st.none() | st.builds(Parameterization, many, many, many))
    if own is not None and first is not None:
        own = own(first=draw(many))
    mean = draw(st.sampled_from([0.0, (0.0, 1.0, 1.0)]))
    p = Parameterization(draw(many), draw(many), draw(many), first=first, biases=own, mean=mean)
    return p, model, optimizer


def changed(p, model, mended, names):
    """`p` with the changes of some parameters only, applied by hand to its exponents."""

    def of(prefix, which, scaling):
        found = list(scaling.exponents(which, model))
        for i in range(model.layers):
            name = f"{prefix}{i + 1}"
            if name in names and (prefix == "W" or i + 1 in model.biased):
                part = {"b": "initial", "c": "rate", "first": "first"}[which]
                found[i] -= getattr(mended[name], part)
        return found

    both = {"b", "c", "first"}
    own = p if p.biases is None else p.biases
    biases = own(**{which: of("b", which, own) for which in both}, biases=None)
    return p(**{which: of("W", which, p) for which in both}, biases=biases)


@hypothesis.given(programs())
@hypothesis.settings(max_examples=40, deadline=None)
def test_what_is_mended_is_stable(program):
    """Classified again; faults are named where something grows, and only there."""
    p, model, optimizer = program
    regime = tp.classify(p, model, optimizer)
    mended = regime.mended()
    assert mended.regime.stable
    assert tp.classify(mended.parameterization, model, optimizer).stable
    assert bool(mended.faults) == (not regime.stable)
    assert all(fault.power.exponent > 0 for fault in mended.faults)
    named = {fault.parameter for fault in mended.faults}
    assert named == {change.parameter for change in mended.changes if not change.nothing}
    assert all(max(change[1:]) <= 0 for change in mended.changes)


@hypothesis.given(programs())
@hypothesis.settings(max_examples=40, deadline=None)
def test_what_is_named_is_at_fault(program):
    """Without the changes of any one of the parameters that are named, something grows."""
    p, model, optimizer = program
    hypothesis.assume(optimizer is not OPTIMIZERS[2])  # natural units hang on the output layer
    mended = tp.classify(p, model, optimizer).mended()
    named = {fault.parameter for fault in mended.faults}
    assert tp.classify(changed(p, model, mended, named), model, optimizer).stable
    for name in named:
        kept = changed(p, model, mended, named - {name})
        assert not tp.classify(kept, model, optimizer).stable, name


@hypothesis.given(programs())
@hypothesis.settings(max_examples=40, deadline=None)
def test_every_layer_can_be_made_to_move(program):
    """Nothing grows, and every parameter adds Θ(1) to the sum that it enters."""
    p, model, optimizer = program
    mended = tp.classify(p, model, optimizer).mended(features=True)
    assert mended.regime.feature_learning
    assert all(row.layer.exponent == 0 for row in mended.regime.rows), mended.regime.rows


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("scaling", ["mup", "ntk"])
def test_one_rate_too_large_is_found(scaling, depth, optimizer):
    """In a program in which nothing else grows, by as much as it is too large."""
    p, model = getattr(scalings, scaling), tp.mlp(depth, inputs=3)
    before = tp.classify(p, model, optimizer)
    # In Adam's natural units the rate of the output layer says how large gradients are.
    for l in range(model.layers if optimizer is not OPTIMIZERS[2] else depth):
        c = list(p.exponents("c", model))
        c[l] -= HALF
        mended = tp.classify(p(c=c), model, optimizer).mended()
        named = [(fault.parameter, fault.part, fault.power.exponent) for fault in mended.faults]
        assert named == [(f"W{l + 1}", "rate", HALF)]
        assert mended[f"W{l + 1}"].rate == -HALF
        assert mended.regime == before


def test_the_standard_parameterization_becomes_mup():
    model = tp.mlp(3, inputs=3)
    mended = tp.classify(scalings.standard, model).mended(features=True)
    assert mended.regime.name == "muP-like"
    assert mended.regime == tp.classify(scalings.mup, model)
    found = [(c.initial, c.first, c.rate) for c in mended.changes]
    assert found == [(0, 1, 1), (0, 0, 0), (0, 0, 0), (-HALF, -1, -1)]


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("activation", ["tanh", "relu2"])
def test_integrable_networks_get_their_first_rates(depth, activation):
    """Those of IP-LLR (Hajjar, Chizat and Giraud, Theorem 2.3.1), from counting alone."""
    model = tp.mlp(depth, inputs=3, activation=activation)
    mended = tp.classify(scalings.naive_ip, model).mended(features=True)
    for which in ("first", "c"):
        found = mended.parameterization.exponents(which, model)
        assert found == scalings.ip_llr.exponents(which, model)


def test_the_kept_initial_function_may_grow():
    model = tp.mlp(1, inputs=3)
    p = scalings.ic_mean_field(initial_a=(0, 0, 0))
    mended = tp.classify(p, model).mended()
    (fault,) = mended.faults
    assert (fault.part, fault.power.exponent, mended.regime.stable) == ("kept", HALF, True)


def test_what_is_said():
    model = tp.mlp(2, inputs=3)
    text = tp.classify(scalings.mup(c=(-1, -Fraction(5, 2), -1)), model).explain()
    lines = text.splitlines()
    assert lines[:4] == [
        "The regime is unstable: something grows with the width, and there is no limit.",
        "After step 1 the preactivations of layer 2 grow like ~ n^(3/2) by the update of W2: "
        "lower its learning rate by n^(-3/2).",
        "With that it is muP-like: nothing grows, and features move.",
        "Every parameter moves its layer.",
    ]
    assert text.count("generic, this if no symmetry makes a coefficient vanish") == 1
    kernel = str(tp.classify(scalings.ntk, model).explain())
    assert "W2 does not move its layer in the limit, it adds ~ n^(-1/2): raise its" in kernel
    assert "every layer" not in tp.classify(scalings.ntk, model).explain(features=False)
    assert "There is nothing to mend." in tp.classify(scalings.mup, model).explain()


def test_what_is_known_is_marked():
    """Initial exponents are exact, later ones generic, bounds where tanh is taken for linear."""
    regime = tp.classify(scalings.mup(b=(0, -1, 0)), tp.mlp(2, inputs=3))
    assert str(regime.power("h_2")) == "n^1"
    assert str(regime.power("f_0")) == "≤ n^(1/2)"
    regime = tp.classify(scalings.mup, tp.mlp(2, inputs=3))
    assert [str(regime.power(name)) for name in ("f_0", "df")] == ["n^(-1/2)", "~ n^0"]
    centred = tp.classify(scalings.ip_non_centered, tp.mlp(2, inputs=3))
    assert centred.known["f_0"] == "generic"
    assert "≤" not in repr(regime) and "W2" in repr(regime)


BATCH = jnp.array([[0.3, -1.0, 0.5]]), jnp.ones((1,))


@pytest.mark.parametrize("features", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("depth", "c"),
    [
        (1, (-1, -3 * HALF)),
        pytest.param(1, (-2, -1), marks=pytest.mark.slow),
        pytest.param(2, (-1, -3 * HALF, -1), marks=pytest.mark.slow),
        pytest.param(2, (0, 0, -2), marks=pytest.mark.slow),
    ],
)
def test_running_the_mended_program_agrees(depth, c, features):
    """The interpreter finds what was counted: nothing grows, and features move, or do not."""
    model = tp.mlp(depth, inputs=3)
    regime = tp.classify(scalings.mup(c=c, b=(*[0] * depth, -HALF)), model)
    assert not regime.stable
    mended = regime.mended(features)
    step = mended.parameterization.step(model, "logistic", 0.5)
    found = tp.classify_step(step, mended.parameterization.theta(model), BATCH, samples=256)
    assert found.stable
    assert found.feature_learning == mended.regime.feature_learning >= features
