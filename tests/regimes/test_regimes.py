"""`tp.classify` against theorems, tables, and the exponents of the sources.

What finite networks do is compared in `test_regimes_measured.py`.
"""

from fractions import Fraction
from itertools import product

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.parameterizations import Parameterization
from tplimit.regimes.counted import region

HALF = Fraction(1, 2)

# Golikov's regions, one hidden layer --------------------------------------------------------------

# name, q_sigma, q_tilde, e0, eK, s
TEST_POINTS = [
    ("MF", -1, 1, -0.5, 0, 0),
    ("NTK", -0.5, 0, 0, 0, -0.5),
    ("sym-default", -0.5, 0.5, 0, 0.5, 0),
    ("MF–NTK", -0.75, 0.5, -0.25, 0, -0.25),
    ("NTK–sym-def", -0.5, 0.25, 0, 0.25, -0.25),
    ("sym-def–MF", -0.75, 0.75, -0.25, 0.25, 0),
    ("post-MF", -1.5, 1.5, -1, -0.5, 0),
    ("pre-sym-default", 0, 0, 0.5, 1, 0),
    ("post-NTK", -1, 0.5, -0.5, -0.5, -0.5),
    ("pre-NTK", 0, -0.5, 0.5, 0.5, -0.5),
    ("triangle", -0.66, 0.5, -0.16, 0.18, -0.16),
    ("post-MF–NTK", -1, 0.75, -0.5, -0.25, -0.25),
    ("pre-NTK–sym-def", 0, -0.25, 0.5, 0.75, -0.25),
    ("diverging", 1, 1, 1.5, 4, 2),
    ("stagnating", -1, -1, -0.5, -2, -2),
]
LEAKY = tp.mlp(1, inputs=10, activation="leaky_relu")


@pytest.mark.parametrize(("name", "q", "q_tilde", "e0", "eK", "s"), TEST_POINTS)
def test_golikov_test_points(name, q, q_tilde, e0, eK, s):
    regime = tp.classify(scalings.golikov(q, q_tilde), LEAKY)
    assert regime.name == name
    assert [float(regime.exponents[k]) for k in ("e0", "eK", "s")] == [e0, eK, s]
    assert regime.exponents["f_0"] == regime.exponents["e0"]
    if -HALF <= s <= 0:  # the first increment of the logits is that of the kernel
        assert regime.exponents["df_1"] == regime.exponents["eK"]
        assert regime.exponents["r"] == -regime.exponents["s"]
    assert regime.stable == (max(e0, eK, s) <= 0)
    assert regime.trivial == (max(e0, s) <= 0 and eK < 0)


def open_interval(low, high):
    return st.integers(1, 59).map(lambda k: low + (high - low) * Fraction(k, 60))


# (e0, s) inside each region, as in the table of regions; eK = e0 + s + 1/2 decides within a row.
POINT = st.just(Fraction(0))
BELOW, ABOVE = open_interval(Fraction(-2), Fraction(0)), open_interval(Fraction(0), Fraction(2))
INNER = open_interval(-HALF, Fraction(0))


def given_s(s, offset):
    """e0 from s and an offset: offset(s) draws e0."""
    return s.flatmap(lambda value: st.tuples(offset(value), st.just(value)))


REGIONS = {
    "MF": given_s(POINT, lambda s: st.just(-HALF)),
    "NTK": given_s(st.just(-HALF), lambda s: POINT),
    "sym-default": given_s(POINT, lambda s: POINT),
    "MF–NTK": given_s(INNER, lambda s: st.just(-HALF - s)),
    "NTK–sym-def": given_s(INNER, lambda s: POINT),
    "sym-def–MF": given_s(POINT, lambda s: open_interval(-HALF, Fraction(0))),
    "post-MF": given_s(POINT, lambda s: BELOW.map(lambda e: e - HALF)),
    "pre-sym-default": given_s(POINT, lambda s: ABOVE),
    "post-NTK": given_s(st.just(-HALF), lambda s: BELOW),
    "pre-NTK": given_s(st.just(-HALF), lambda s: ABOVE),
    "triangle": given_s(INNER, lambda s: open_interval(-HALF - s, Fraction(0))),
    "post-MF–NTK": given_s(INNER, lambda s: BELOW.map(lambda e: e - HALF - s)),
    "pre-NTK–sym-def": given_s(INNER, lambda s: ABOVE),
    "diverging": given_s(ABOVE, lambda s: open_interval(Fraction(-2), Fraction(2))),
    "stagnating": given_s(
        BELOW.map(lambda e: e - HALF), lambda s: open_interval(Fraction(-2), Fraction(2))
    ),
}


def test_there_are_thirteen_regions():
    assert len(REGIONS) == 13 + 2
    assert set(REGIONS) == {row[0] for row in TEST_POINTS}


@pytest.mark.parametrize("name", REGIONS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=30, deadline=None)
def test_every_point_of_a_region_has_its_name(name, data):
    e0, s = data.draw(REGIONS[name])
    assert region(e0, s) == name
    regime = tp.classify(scalings.golikov(e0 - HALF, s - e0 + HALF), LEAKY)
    assert regime.name == name
    assert [regime.exponents[k] for k in ("e0", "eK", "s")] == [e0, e0 + s + HALF, s]


def test_named_parameterizations_of_one_hidden_layer():
    names = {
        "mup": "MF", "naive_ip": "MF", "mean_field": "MF", "ip_llr": "MF", "hp": "MF", "hpz": "MF",
        "ntk": "NTK", "sym_default": "sym-default", "ic_mean_field": "IC-MF",
        "standard": "unstable",
    }  # fmt: skip
    for parameterization, name in names.items():
        assert tp.classify(getattr(scalings, parameterization), LEAKY).name == name
    corrected = tp.classify(scalings.ic_mean_field, LEAKY)
    assert corrected.feature_learning
    assert corrected.exponents["f_0"] == 0
    default = tp.classify(scalings.golikov(-0.5, q_a=1, q_w=0), LEAKY)
    assert (default.name, default.exponents["f_0"], default.exponents["df_1"]) == ("unstable", 0, 1)


@hypothesis.given(q=open_interval(HALF, Fraction(1)))
def test_intermediate_has_a_kernel_and_no_initial_function(q):
    regime = tp.classify(scalings.intermediate(q), LEAKY)
    assert (regime.name, regime.kernel) == ("MF–NTK", True)
    exponents = [regime.exponents[k] for k in ("f_0", "df", "s", "weights_1", "weights_2")]
    assert exponents == [HALF - q, 0, q - 1, q - 1, q - 1]


# Tensor Programs IV -------------------------------------------------------------------------------

LEVELS = st.sampled_from([Fraction(k, 4) for k in range(-8, 9)])


#: Networks whose layers have an exponent each, of rates or of updates.
NETWORKS = {
    "depth": st.integers(1, 4),
    "each": st.lists(LEVELS, min_size=5, max_size=5),
    "alpha": LEVELS.map(lambda e: e + 1),
    "b": LEVELS,
    "activation": st.sampled_from(["tanh", "relu", "gelu", "relu2", "sigmoid"]),
}


@hypothesis.given(**NETWORKS)
@hypothesis.settings(max_examples=300, deadline=None)
def test_conditions_of_tensor_programs_iv(depth, each, alpha, b, activation):
    """Every layer with a rate of its own: κ_l = 2 a_l + c_l, α = a_out + b_out.

    r = min(α, κ_out) - 1 + min_l (κ_l + 1{l = 1}); stable: r ≥ 0, κ_out ≥ 1, α + r ≥ 1, α ≥ 1/2;
    not trivial: κ_out = 1 or α + r = 1; feature learning: r = 0.
    """
    kappa = each[: depth + 1]
    initial = [Fraction(0), *[HALF] * (depth - 1), alpha]
    a = [e - b for e in initial]
    c = [k - 2 * e for k, e in zip(kappa, a, strict=True)]
    regime = tp.classify(Parameterization(a, b, c), tp.mlp(depth, inputs=3, activation=activation))
    out = kappa[-1]
    r = min(alpha, out) - 1 + min(k + (l == 0) for l, k in enumerate(kappa[:-1]))
    stable = r >= 0 and out >= 1 and alpha + r >= 1 and alpha >= HALF
    learns = stable and (out == 1 or alpha + r == 1)
    assert regime.stable == stable
    assert regime.trivial == (stable and not learns)
    assert regime.feature_learning == (learns and r == 0)
    assert regime.kernel == (learns and r > 0)
    if stable:
        assert regime.exponents["r"] == r


@hypothesis.given(
    scaling=st.sampled_from(["standard", "ntk", "mup", "naive_ip", "ip_llr", "ip_bias", "hp"]),
    depth=st.integers(1, 4),
    shift=LEVELS,
)
@hypothesis.settings(deadline=None)
def test_a_shift_between_multiplier_and_initial_scale_changes_nothing(scaling, depth, shift):
    """(a, b, c) → (a + θ, b - θ, c - 2θ) is the same training (Tensor Programs IV)."""
    p = getattr(scalings, scaling)
    model = tp.mlp(depth, inputs=3, activation="relu", bias=True)

    def shifted(p):
        move = {"a": shift, "b": -shift, "c": -2 * shift, "first": -2 * shift}
        exponents = {k: [e + d for e in p.exponents(k, model)] for k, d in move.items()}
        return p(**exponents, biases=p.biases and shifted(p.biases))

    assert tp.classify(shifted(p), model) == tp.classify(p, model)


# Tensor Programs IVb: optimizers ------------------------------------------------------------------

ADAM, SIGN = optax.adam(1.0), optax.sign_sgd(1.0)


@hypothesis.given(**NETWORKS)
@hypothesis.settings(max_examples=50, deadline=None)
def test_conditions_for_updates_of_a_given_size(depth, each, alpha, b, activation):
    """Adam, entries of updates n^-δ_l, δ = a + c + d; α = a_out + b_out.

    r = min_l (δ_l - 1{l > 1}); stable: r ≥ 0, δ_out ≥ 1, α + r ≥ 1, α ≥ 1/2;
    not trivial: δ_out = 1 or α + r = 1; feature learning: r = 0.
    """
    delta = each[: depth + 1]
    initial = [Fraction(0), *[HALF] * (depth - 1), alpha]
    a = [e - b for e in initial]
    d = [a_l + min(alpha, delta[-1]) for a_l in a[:-1]] + [a[-1]]
    c = [sum(e) for e in zip(delta, [-e for e in a], [-e for e in d], strict=True)]
    scaling, model = Parameterization(a, b, c), tp.mlp(depth, inputs=3, activation=activation)
    assert list(scaling.exponents("d", model)) == d
    regime = tp.classify(scaling, model, ADAM)
    r = min(e - (l > 0) for l, e in enumerate(delta[:-1]))
    stable = r >= 0 and delta[-1] >= 1 and alpha + r >= 1 and alpha >= HALF
    learns = stable and (delta[-1] == 1 or alpha + r == 1)
    assert regime.stable == stable
    assert regime.trivial == (stable and not learns)
    assert regime.feature_learning == (learns and r == 0)
    assert regime.kernel == (learns and r > 0)
    if stable:
        assert regime.exponents["r"] == r


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_adam_in_mup_learns_features_and_in_the_ntk_scaling_does_not(depth, activation):
    """Natural units: the regimes of gradient descent, where no activation vanishes."""
    model = tp.mlp(depth, inputs=3, activation=activation, bias=True)
    for optimizer in (ADAM, SIGN, optax.lion(1.0), optax.rmsprop(1.0), optax.adagrad(1.0)):
        for scaling in (scalings.mup, scalings.ntk, scalings.hp):
            assert tp.classify(scaling, model, optimizer) == tp.classify(scaling, model)
    assert tp.classify(scalings.mup, model, ADAM).feature_learning
    kernel = tp.classify(scalings.ntk, model, ADAM)
    assert kernel.kernel
    assert kernel.exponents["r"] == HALF


@pytest.mark.parametrize("name", ["standard", "ntk", "mup", "naive_ip", "ip_llr", "ip_bias", "hpz"])
def test_momentum_has_the_regime_of_gradient_descent(name):
    momentum, scaling = optax.sgd(1.0, momentum=0.9), getattr(scalings, name)
    for depth in (1, 2, 3):
        model = tp.mlp(depth, inputs=3, bias=True)
        assert tp.classify(scaling, model, momentum) == tp.classify(scaling, model)


def test_updates_that_do_not_shrink_with_the_gradients_get_integrable_networks_moving():
    """Gradients vanish at first; naive_ip stays where it is from three hidden layers on, but for
    updates of a given size. Where a gradient is exactly 0, so are these."""
    for depth in (2, 3, 4):
        model = tp.mlp(depth, inputs=3)
        regime = tp.classify(scalings.naive_ip, model, SIGN)
        assert regime.name == "mean-field"
        for which in ("first_update", "update"):
            assert updates(regime, depth, which) == [0] * (depth + 1)
    zero = tp.classify(scalings.mup(std=(1.0, 1.0, 0.0)), tp.mlp(2, inputs=3), SIGN)
    assert updates(zero, 2, "first_update") == [-float("inf"), -float("inf"), 0]


@pytest.mark.parametrize("q", [(-1, 1), (-HALF, 0), (-HALF, HALF), (-3 * HALF / 2, HALF)])
def test_golikovs_regions_are_those_of_adam(q):
    assert tp.classify(scalings.golikov(*q), LEAKY, ADAM) == tp.classify(
        scalings.golikov(*q), LEAKY
    )


def test_optimizers_whose_powers_cannot_be_counted():
    model = tp.mlp(2, inputs=3)
    for optimizer in (optax.clip(1.0), optax.adam(1.0, eps=1.0)):
        with pytest.raises(ValueError, match=r"neither proportional.*tp\.classify_step"):
            tp.classify(scalings.mup, model, optimizer)
    for optimizer in (optax.clip_by_global_norm(0.1), optax.lamb(1.0)):
        with pytest.raises(ValueError, match=r"depend on the number of entries.*tp\.classify_step"):
            tp.classify(scalings.mup, model, optimizer)


# Integrable parameterizations ---------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "relu2", "tanh", "gelu", "elu", "abs"])
def test_naive_ip_is_trivial_from_three_hidden_layers_on(activation):
    """Proposition 2.3.1; with ReLU² two hidden layers are trivial already."""
    for depth in range(1, 7):
        regime = tp.classify(scalings.naive_ip, tp.mlp(depth, inputs=3, activation=activation))
        assert regime.stable
        assert regime.trivial == (depth >= (2 if activation == "relu2" else 3))
        assert regime.trivial or regime.feature_learning


def test_naive_ip_with_a_sigmoid_moves():
    """φ(0) ≠ 0: the last two layers move in the first step, the others later."""
    for depth in (3, 4, 5):
        regime = tp.classify(scalings.naive_ip, tp.mlp(depth, inputs=3, activation="sigmoid"))
        first = [regime.exponents[f"first_update_{l}"] for l in range(1, depth + 2)]
        assert [e == 0 for e in first] == [False] * (depth - 1) + [True] * 2
        assert not regime.trivial


def updates(regime, depth, which):
    return [regime.exponents[f"{which}_{l}"] for l in range(1, depth + 2)]


def test_contributions_of_updates_with_three_hidden_layers():
    model = tp.mlp(3, inputs=3, activation="relu", bias="first")
    naive = tp.classify(scalings.naive_ip, model)
    assert updates(naive, 3, "first_update") == [-1, -HALF, -1, -2]
    llr = tp.classify(scalings.ip_llr, model)
    assert updates(llr, 3, "first_update") == updates(llr, 3, "update") == [0] * 4
    kept = tp.classify(scalings.naive_ip(c=scalings.large_first_rates), model)
    assert updates(kept, 3, "update") == [1, Fraction(3, 2), 2, 3]
    assert kept.name == "unstable"


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["relu", "relu2", "tanh", "gelu"])
def test_ip_llr_learns_in_every_layer(depth, activation):
    """Theorem 2.4.1, and Θ(1) relative movement of the hidden weights, against n^-1/2 in muP."""
    model = tp.mlp(depth, inputs=3, activation=activation, bias="first")
    for p in (scalings.ip_llr, scalings.hp, scalings.hpz):
        regime = tp.classify(p, model)
        assert regime.stable
        assert regime.feature_learning
        assert updates(regime, depth, "update") == [0] * (depth + 1)
        if depth > 1:
            assert regime.name == "mean-field"
    s = sum(model.homogeneity**k for k in range(depth))
    assert tp.classify(scalings.ip_llr, model).exponents["f_0"] == -Fraction(s, 2)
    mup = tp.classify(scalings.mup, model)
    for l in range(2, depth + 1):
        assert mup.name == "muP-like"
        assert mup.exponents[f"weights_{l}"] == -HALF
        assert tp.classify(scalings.ip_llr, model).exponents[f"weights_{l}"] == 0


@pytest.mark.parametrize("activation", ["relu", "relu2", "tanh"])
@pytest.mark.parametrize("depth", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_exponents_of_both_steps_are_forced(activation, depth):
    """Theorems 2.3.1 and 2.3.2 on a grid: only γ, then (-1, -2, .., -2, -1), keep all updates Θ(1).

    First and later exponents move by -1/2, 0 or 1/2 in the input, hidden and output layers.
    """
    model = tp.mlp(depth, inputs=3, activation=activation, bias="first")
    gamma = scalings.large_first_rates(model)
    gamma = (gamma[0], gamma[1], gamma[-1])
    found = []
    for move in product((-HALF, 0, HALF), repeat=6):
        first = [e + d for e, d in zip(gamma, move[:3], strict=True)]
        later = [e + d for e, d in zip((-1, -2, -1), move[3:], strict=True)]
        regime = tp.classify(scalings.naive_ip(c=later, first=first), model)
        if (
            updates(regime, depth, "first_update")
            == updates(regime, depth, "update")
            == [0] * (depth + 1)
        ):
            found.append(move)
    assert found == [(0,) * 6]
    # Weaker initial rates are trivial again, stronger ones diverge.
    shifted = [scalings.naive_ip(first=[e + d for e in gamma]) for d in (HALF, -HALF)]
    weak, strong = (tp.classify(p, model) for p in shifted)
    assert weak.trivial
    assert not strong.stable


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_biases_and_means_prevent_triviality(depth):
    for activation in ("relu", "elu", "tanh"):
        model = tp.mlp(depth, inputs=3, activation=activation, bias=True)
        for p in (scalings.ip_bias, scalings.ip_non_centered):
            regime = tp.classify(p, model)
            assert regime.feature_learning
            assert updates(regime, depth, "update") == [0] * (depth + 1)
    initial = tp.classify(scalings.ip_bias, model).exponents
    assert [initial[k] for k in ("h_1", "h_2", "f_0")] == [0, 0, 0]
    # f_0 → u E[x^L], which is 0 where φ is odd and the input layer symmetric.
    elu, tanh = (tp.mlp(depth, inputs=3, activation=name) for name in ("elu", "tanh"))
    assert tp.classify(scalings.ip_non_centered, elu).exponents["f_0"] == 0
    assert tp.classify(scalings.ip_non_centered, tanh).exponents["f_0"] < 0
    # Scaled biases of every layer do not help.
    trivial = tp.classify(scalings.naive_ip, tp.mlp(depth, inputs=3, bias=True)).trivial
    assert trivial == (depth >= 3)


def test_the_published_first_rates_with_a_sigmoid_diverge():
    """Degree 1 was used for every activation; with φ(0) ≠ 0 nothing vanishes that could balance."""
    with pytest.raises(ValueError, match=r"φ\(0\) is not 0.*subtract"):
        tp.classify(scalings.ip_llr, tp.mlp(3, inputs=3, activation="sigmoid"))
    model = tp.mlp(3, inputs=3, activation="sigmoid", degree=1)
    assert tp.classify(scalings.ip_llr, model).name == "unstable"
    centred = tp.mlp(3, inputs=3, activation=lambda h: jnp.tanh(h / 2) / 2)
    assert tp.classify(scalings.ip_llr, centred).feature_learning


# Other scalings -----------------------------------------------------------------------------------


def test_deep_networks_by_name():
    model = tp.mlp(3, inputs=3)
    names = {
        "standard": "unstable", "ntk": "kernel", "mup": "muP-like", "naive_ip": "trivial",
        "ip_llr": "mean-field", "hpz": "mean-field",
    }  # fmt: skip
    assert {k: tp.classify(getattr(scalings, k), model).name for k in names} == names
    frozen_input = scalings.mup(c=(0, -1, -1))
    assert tp.classify(frozen_input, model).name == "feature learning"


def test_weights_that_start_at_zero():
    """muP with output weights at zero: f_0 = 0 exactly, and the same limit of learning."""
    regime = tp.classify(scalings.mup(std=(1.0, 1.0, 0.0)), tp.mlp(3, inputs=3))
    assert regime.exponents["f_0"] == -float("inf")
    assert regime.exponents["df_1"] == 0
    assert regime.feature_learning


def test_a_regime_is_one_of_four():
    for name, depth in product(("standard", "ntk", "mup", "naive_ip", "ip_llr"), (1, 2, 3)):
        regime = tp.classify(getattr(scalings, name), tp.mlp(depth, inputs=3))
        flags = (regime.trivial, regime.feature_learning, regime.kernel, not regime.stable)
        assert sum(flags) == 1


def test_an_activation_without_a_power_is_refused():
    flat = tp.mlp(2, inputs=3, activation=lambda h: jnp.exp(-1 / h**2))
    with pytest.raises(ValueError, match="like no power of its argument: give its degree"):
        tp.classify(scalings.mup, flat)
