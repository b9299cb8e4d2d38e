"""`tp.classify_step`: regimes read off programs, against `tp.classify` and beyond it."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.errors import LimitError

N = tp.Width("n")
HALF = Fraction(1, 2)
RNG = np.random.default_rng(0)
BATCH = jnp.asarray(RNG.normal(size=(1, 3)), jnp.float32), jnp.ones((1,), jnp.float32)
FIELDS = ("stable", "trivial", "kernel", "feature_learning")


def regimes(parameterization, model, loss="logistic", **how):
    step = parameterization.step(model, loss, 0.5)
    found = tp.classify_step(step, parameterization.theta(model), BATCH, samples=512, **how)
    return found, tp.classify(parameterization, model)


def assert_agree(parameterization, model, **how):
    """The same regime; the same exponents, but for increments that two terms only bound."""
    found, counted = regimes(parameterization, model, **how)
    assert [getattr(found, f) for f in FIELDS] == [getattr(counted, f) for f in FIELDS]
    assert found.exponents["f_0"] == counted.exponents["f_0"]
    if counted.trivial:
        assert 0 > found.exponents["df"] >= counted.exponents["df"]
    elif counted.stable:
        for name in ("df_1", "df", "r"):
            assert found.exponents[name] == counted.exponents[name], name


def golikov():
    """Golikov's plane (q_sigma, q_tilde) around its 13 regions."""
    for q, q_tilde in itertools.product(range(-8, 2), range(-4, 7)):
        yield 1, scalings.golikov(Fraction(q, 4), Fraction(q_tilde, 4))


def one_hidden_layer():
    """Readouts of three scales, learning rates of both layers apart."""
    for a, *c in itertools.product((HALF, 1, 3 * HALF), range(-4, 3), range(-4, 3)):
        yield 1, tp.Parameterization(a=(0, a), b=(0, 0), c=tuple(Fraction(x, 2) for x in c))


def two_hidden_layers():
    """From NTK (1/2, 1/2) and muP (1/2, 1) to integrable (1, 1), learning rates of all layers."""
    for inner, outer in itertools.product((HALF, 1), repeat=2):
        below = (-2, -3 * HALF, -1, 0)
        for c in itertools.product(below, below, (-2, -1, -HALF, 0)):
            yield (
                2,
                tp.Parameterization(a=(0, inner, outer), b=(0, 0, 0), c=tuple(map(Fraction, c))),
            )


GRIDS = {"golikov": golikov, "one": one_hidden_layer, "two": two_hidden_layers}


def test_the_grids_have_more_than_five_hundred_points():
    assert sum(len(list(grid())) for grid in GRIDS.values()) == 110 + 147 + 256


@pytest.mark.parametrize(
    "grid", ["one", *(pytest.param(g, marks=pytest.mark.slow) for g in ("golikov", "two"))]
)
def test_some_points_of_the_grids(grid):
    for depth, parameterization in list(GRIDS[grid]())[7::120]:
        assert_agree(parameterization, tp.mlp(depth, inputs=3))


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_counting_and_running_agree_on_the_grids(grid):
    for depth, parameterization in GRIDS[grid]():
        assert_agree(parameterization, tp.mlp(depth, inputs=3))


@pytest.mark.slow
def test_counting_and_running_agree_for_relu():
    for depth, parameterization in list(one_hidden_layer())[::2]:
        assert_agree(parameterization, tp.mlp(depth, inputs=3, activation="relu"))


NAMED = [
    ("mup", 1, "tanh", "mean-field"),
    pytest.param("ntk", 2, "tanh", "kernel", marks=pytest.mark.slow),
    pytest.param("ntk", 3, "relu", "kernel", marks=pytest.mark.slow),
    pytest.param("mup", 2, "tanh", "muP-like", marks=pytest.mark.slow),
    pytest.param("standard", 2, "relu", "unstable", marks=pytest.mark.slow),
    pytest.param("naive_ip", 2, "tanh", "mean-field", marks=pytest.mark.slow),
    pytest.param("naive_ip", 3, "tanh", "trivial", marks=pytest.mark.slow),
    pytest.param("ip_llr", 3, "tanh", "mean-field", marks=pytest.mark.slow),
    pytest.param("ip_llr", 2, "relu", "mean-field", marks=pytest.mark.slow),
    pytest.param("hp", 2, "relu", "mean-field", marks=pytest.mark.slow),
    pytest.param("ip_bias", 3, "tanh", "mean-field", marks=pytest.mark.slow),
    pytest.param("ip_non_centered", 4, "elu", "mean-field", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "depth", "activation", "name"), NAMED)
def test_named_parameterizations(scaling, depth, activation, name):
    bias = {"ip_llr": "first", "hp": "first", "ip_bias": True}.get(scaling, False)
    model = tp.mlp(depth, inputs=3, activation=activation, bias=bias)
    parameterization = getattr(scalings, scaling)
    found, counted = regimes(parameterization, model, loss="mse")
    assert found.name == name
    assert [getattr(found, f) for f in FIELDS] == [getattr(counted, f) for f in FIELDS]


def optimizers():
    """Two terms of signs of matrices are known for one step only."""
    adam, signs = optax.adam(1.0), optax.sign_sgd(1.0)
    momentum, lion = optax.sgd(1.0, momentum=0.9), optax.lion(1.0, weight_decay=0.0)
    for name, depth in itertools.product(("mup", "ntk"), (1, 2)):
        steps = 3 if depth == 1 else 1
        yield pytest.param(name, depth, adam, 3, id=f"{name}-{depth}-adam")
        yield pytest.param(name, depth, momentum, 3, id=f"{name}-{depth}-momentum")
        yield pytest.param(name, depth, signs, steps, id=f"{name}-{depth}-sign")
        yield pytest.param(name, depth, lion, steps, id=f"{name}-{depth}-lion")


@pytest.mark.slow
@pytest.mark.parametrize(("scaling", "depth", "optimizer", "steps"), optimizers())
def test_counting_and_running_agree_for_optimizers(scaling, depth, optimizer, steps):
    """Adam moves features in muP, and does not in the NTK scaling (Tensor Programs IVb)."""
    p, model = getattr(scalings, scaling), tp.mlp(depth, inputs=3)
    step = p.step(model, "logistic", 0.5, optimizer)
    found = tp.classify_step(step, p.theta(model), BATCH, samples=512, steps=steps)
    counted = tp.classify(p, model, optimizer)
    assert [getattr(found, f) for f in FIELDS] == [getattr(counted, f) for f in FIELDS]
    for name in ("f_0", "df_1", "df", "r"):
        assert found.exponents[name] == counted.exponents[name], name


def test_weight_decay_moves_features_wherever_it_is():
    """Parameters shrink by a factor of order one, which counting does not see."""
    model, lion = tp.mlp(1, inputs=3), optax.lion(1.0, weight_decay=0.1)
    step = scalings.ntk.step(model, "logistic", 0.5, lion)
    found = tp.classify_step(step, scalings.ntk.theta(model), BATCH, samples=512, steps=1)
    assert (found.feature_learning, found.exponents["r"]) == (True, 0)


# --- programs that no parameterization describes


def predict(theta, x):
    """Residual, tied, with a normalisation over the width; scales are the user's."""
    h = x @ theta["U"]
    for _ in range(2):
        h = h + jnp.tanh(h @ theta["W"])
        h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 0.1)
    return h @ theta["v"] * theta["v"].shape[0] ** -theta["power"]


def program(optimizer, power):
    n = tp.Width("n")
    theta = {
        "U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,)),
    }  # fmt: skip

    def loss(weights, x, y):
        return jnp.mean((predict(weights | {"power": power}, x) - y) ** 2)

    def step(state, batch):
        weights, memory = state
        value, gradients = jax.value_and_grad(loss)(weights, *batch)
        width = weights["v"].shape[0] ** (2 * power - 1)
        rates = {"U": width, "W": width / weights["v"].shape[0], "v": width}
        gradients = jax.tree.map(lambda g, r: g * r, gradients, rates)
        updates, memory = optimizer.update(gradients, memory, weights)
        return (optax.apply_updates(weights, updates), memory), value

    return step, theta, lambda weights: (weights, optimizer.init(weights))


@pytest.mark.slow
@pytest.mark.parametrize(("power", "name"), [(0.5, "kernel"), (1.0, "muP-like")])
def test_a_residual_network_with_normalisation_and_momentum(power, name):
    """The readout decides: n^(-1/2) and rates to match is the kernel regime, n^-1 is muP."""
    step, theta, init = program(optax.sgd(0.1, momentum=0.9), power)
    regime = tp.classify_step(step, theta, BATCH, init=init, samples=512)
    assert regime.name == name
    assert regime.exponents["r"] == (HALF if name == "kernel" else 0)


def test_a_linear_network_has_features_too():
    def step(theta, batch):
        def loss(t):
            return jnp.mean((x @ t["U"] @ t["v"] / t["v"].shape[0] - y) ** 2)

        x, y = batch
        n = theta["v"].shape[0]
        value, gradients = jax.value_and_grad(loss)(theta)
        return jax.tree.map(lambda p, g: p - n * 0.1 * g, theta, gradients), value

    theta = {"U": tp.normal((3, N)), "v": tp.normal((N,))}
    regime = tp.classify_step(step, theta, BATCH, samples=512)
    assert (regime.name, regime.exponents["f_0"]) == ("mean-field", -HALF)


def test_the_second_value_has_to_depend_on_the_outputs():
    theta = {"v": tp.normal((N,))}
    with pytest.raises(LimitError, match="No output of a network was found"):
        tp.classify_step(lambda t, b: (t, b[1].sum()), theta, BATCH)
    with pytest.raises(LimitError, match="does not return a pair"):
        tp.classify_step(lambda t, b: t, theta, BATCH)


def test_errors_of_the_program_are_its_own():
    """Sorting along the width has no limit, whatever the regime."""

    def step(theta, batch):
        x, y = batch
        return theta, jnp.mean((jnp.mean(jnp.sort(x @ theta["U"]), axis=-1) - y) ** 2)

    with pytest.raises(tp.NoLimitError, match="sort"):
        tp.classify_step(step, {"U": tp.normal((3, N))}, BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("after", [True, False])
def test_factors_may_stand_before_or_after_the_product(after):
    """muP with unit weights and ``n^(-1/2)`` in the program."""

    def predict(t, x):
        root = jnp.sqrt(t["v"].shape[0])
        h = jnp.tanh(x @ t["U"])
        h = h @ t["W"] / root if after else h @ (t["W"] / root)
        return jnp.tanh(h) @ t["v"] / t["v"].shape[0]

    def step(t, batch):
        loss = lambda t: 0.5 * jnp.mean((predict(t, batch[0]) - batch[1]) ** 2)
        value, g = jax.value_and_grad(loss)(t)
        return jax.tree.map(lambda p, g: p - 0.3 * t["v"].shape[0] * g, t, g), value

    theta = {"U": tp.normal((3, N)), "W": tp.normal((N, N)), "v": tp.normal((N,))}
    assert tp.classify_step(step, theta, BATCH, samples=512).name == "muP-like"


def mup_step(rate=0.5, **model):
    network = tp.mlp(1, inputs=3, **model)
    return scalings.mup.step(network, "mse", rate), scalings.mup.theta(network)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ((BATCH[0].at[0, 1].set(jnp.nan), BATCH[1]), r"batch\[0\] holds nan at \[0, 1\]"),
        ((BATCH[0], jnp.array([jnp.inf])), r"batch\[1\] holds inf at \[0\]"),
        ((BATCH[0][:0], BATCH[1][:0]), r"batch\[0\] is empty, its shape is \(0, 3\)"),
        ({"x": float("nan")}, r"batch\['x'\] holds nan: give finite numbers"),
    ],
)
def test_a_batch_that_tells_nothing_is_refused_by_name(batch, reason):
    step, theta = mup_step()
    with pytest.raises(ValueError, match=reason):
        tp.classify_step(step, theta, batch)


def test_parameters_that_are_no_numbers_are_refused_by_name():
    step, theta = mup_step()
    name = next(iter(theta))
    with pytest.raises(ValueError, match=rf"theta\['{name}'\] holds nan"):
        tp.classify_step(step, theta | {name: jnp.full((2,), jnp.nan)}, BATCH)


def test_nan_that_the_program_makes_is_an_error_with_its_line():
    theta = {"u": tp.normal((3, N)), "v": tp.normal((N,), mean=1.0)}

    def step(t, batch):
        f = jnp.mean(jnp.tanh(batch @ t["u"]) ** 2 * t["v"], axis=-1)
        return t, jnp.log(-f)

    with pytest.raises(ValueError, match=r"NaN or infinite(.|\n)*test_inspection\.py:\d+"):
        tp.classify_step(step, theta, BATCH[0], samples=256)


@pytest.mark.slow
def test_training_that_diverges_within_the_steps_is_an_error():
    step, theta = mup_step(1e15, activation="relu")
    with pytest.raises(ValueError, match="learning rate so large that training diverges"):
        tp.classify_step(step, theta, BATCH, samples=256)
