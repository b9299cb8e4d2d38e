"""Exponents that `tp.classify` counts, against networks of width 2^7 to 2^11.

Fitted: the slope of the log of a root mean square over units and test points, averaged over seeds
(sizes are products of averages, with heavy tails at small widths), against the log of the width.
Nothing is taken from the parameterizations but their plain JAX.
"""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.networks.activations import resolve

WIDTHS = (128, 256, 512, 1024, 2048)
X = np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)
POINTS = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)


def layers(p, model, state, x):
    """Preactivations of all layers (the last are outputs) and what each layer is given."""
    effective, phi = p.effective(model, state), resolve(model.activation)
    given, h = [x], []
    for l in range(1, model.layers + 1):
        h.append(given[-1] @ effective[f"W{l}"] + effective.get(f"b{l}", 0.0))
        given.append(phi(h[-1]))
    return h, given[:-1]


def linear(f, y):
    """A loss of derivative -1, so that no exponent hides behind a residual that shrinks."""
    return -jnp.sum(f * y)


def observe(p, model, lr, steps, optimizer=None):
    """One run of a network as a function of its parameters: a dictionary of squared sizes."""
    predict, step = p.predict(model), p.step(model, linear, lr, optimizer)
    square = lambda a: jnp.mean(a.astype(float) ** 2)

    def run(theta):
        seen, state, f_0 = {}, theta, predict(theta, POINTS)
        start = p.effective(model, theta)
        h, _ = layers(p, model, theta, POINTS)
        seen |= {f"h_{l}": square(v) for l, v in enumerate(h[:-1], start=1)} | {"f_0": square(f_0)}
        for t in range(steps):
            before = p.effective(model, state)
            state, _ = step(state, (X[t], np.ones(1, np.float32)))
            after = p.effective(model, state)
            _, given = layers(p, model, state, X[t + 1])
            which = "first_update" if t == 0 else "update"
            for l in range(1, model.layers + 1):
                moved = given[l - 1] @ (after[f"W{l}"] - before[f"W{l}"])
                seen[f"{which}_{l}"] = square(moved)
            if t == 0:
                seen["df_1"] = square(predict(state, POINTS) - f_0)
        seen["df"] = square(predict(state, POINTS) - f_0)
        for l in range(1, model.layers + 1):
            moved = after[f"W{l}"] - start[f"W{l}"]
            seen[f"weights_{l}"] = square(moved) / square(start[f"W{l}"])
        return seen

    return run


def slopes(p, model, lr=0.5, steps=3, widths=WIDTHS, seeds=6, optimizer=None):
    """Fitted exponents of everything observed."""
    run, sizes = jax.jit(observe(p, model, lr, steps, optimizer)), defaultdict(list)
    for n in widths:
        count = seeds * (4 if n <= 512 else 1)
        thetas = (tp.sample(p.theta(model), jax.random.key(s), width=n) for s in range(count))
        rows = [run(theta) for theta in thetas]
        for name in rows[0]:
            sizes[name].append(np.mean([0.5 * np.log(float(row[name])) for row in rows]))
    logs = np.log(widths)
    return {name: np.polyfit(logs, values, 1)[0] for name, values in sizes.items()}


def root_2_relu(h):
    """ReLU that keeps second moments: its finite-width bias is smaller."""
    return 2**0.5 * jnp.maximum(h, 0)


def network(depth, activation="relu", bias="first"):
    return tp.mlp(depth, inputs=3, activation=activation, bias=bias)


CASES = {  # parameterization, model, learning rate, steps
    "ntk": (scalings.ntk, network(3, "tanh"), 0.5, 3),
    "mup": (scalings.mup, network(3), 0.2, 3),
    "naive_ip-3": (scalings.naive_ip, network(3), 0.5, 3),
    "naive_ip-2": (scalings.naive_ip, network(2), 0.5, 3),
    "naive_ip-sigmoid": (scalings.naive_ip, network(3, "sigmoid"), 5.0, 3),
    "ip_llr": (scalings.ip_llr, network(3, root_2_relu), 2.0, 2),
    "hp": (scalings.hp, network(2, root_2_relu), 0.5, 2),
    "ip_bias": (scalings.ip_bias, network(3, "tanh", bias=True), 10.0, 2),
    "ip_non_centered": (scalings.ip_non_centered, network(3, "elu", bias=True), 0.5, 3),
    "intermediate": (scalings.intermediate(0.75), network(1, "leaky_relu", False), 0.3, 3),
    "sym_default": (scalings.sym_default, network(1, "leaky_relu", False), 0.3, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_networks_have_the_exponents_of_their_regime(case):
    """Everything but f_0, at widths up to 1024; exponents are multiples of 1/2 (or 1/4)."""
    p, model, lr, steps = CASES[case]
    measured = slopes(p(input_scale=1.0), model, lr, steps, WIDTHS[:4])
    exponents = tp.classify(p, model).exponents
    measured.pop("f_0")
    worst = max(measured, key=lambda k: abs(measured[k] - exponents[k]))
    difference = abs(measured[worst] - exponents[worst])
    assert difference < 0.15, f"{worst}: {measured[worst]:.2f}, not {exponents[worst]}"
    assert {k for k in exponents if k not in ("r", "e0", "eK", "s", "f_0")} == set(measured)


ADAM, SIGN = optax.adam(1.0, eps=1e-30), optax.sign_sgd(1.0)
OPTIMIZERS = {
    "mup-adam": (scalings.mup, network(3, "tanh"), ADAM, 0.05),
    "mup-sign": (scalings.mup, network(3, "tanh"), SIGN, 0.05),
    "ntk-adam": (scalings.ntk, network(3, "tanh"), ADAM, 0.2),
    "ntk-sign": (scalings.ntk, network(3, "tanh"), SIGN, 0.2),
    "naive_ip-sign": (scalings.naive_ip, network(3), SIGN, 1.0),
    "intermediate-adam": (scalings.intermediate(0.75), network(1, "leaky_relu", False), ADAM, 0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizers_have_the_exponents_of_their_regime(case):
    """Of degree 0 in the gradients, however these vanish: `eps` is too small to be felt."""
    p, model, optimizer, lr = OPTIMIZERS[case]
    measured = slopes(p(input_scale=1.0), model, lr, 3, WIDTHS[:4], optimizer=optimizer)
    exponents = tp.classify(p, model, optimizer).exponents
    measured.pop("f_0")
    worst = max(measured, key=lambda k: abs(measured[k] - exponents[k]))
    difference = abs(measured[worst] - exponents[worst])
    assert difference < 0.15, f"{worst}: {measured[worst]:.2f}, not {exponents[worst]}"


@pytest.mark.slow
def test_contributions_of_updates_in_naive_ip():
    """Published: exponents -1, -1/2, -1, -2, measured -0.99, -0.48, -0.98, -1.97."""
    measured = slopes(scalings.naive_ip(input_scale=1.0), network(3), 0.5, 1, WIDTHS[1:], 8)
    found = [measured[f"first_update_{l}"] for l in range(1, 5)]
    np.testing.assert_allclose(found, [-1, -0.5, -1, -2], rtol=0, atol=0.06)


@pytest.mark.slow
def test_naive_ip_with_relu_squared_is_trivial_with_two_hidden_layers():
    """Degree 2: activations vanish faster, and f_t - f_0 like 1 / n, against O(1) for degree 1."""
    p, model = scalings.naive_ip(input_scale=1.0), network(2, "relu2")
    measured = slopes(p, model, 0.1, 3, WIDTHS[2:], 8)
    assert tp.classify(p, model).trivial
    for name in ("df_1", "df", "first_update_1", "update_1"):
        assert abs(measured[name] + 1) < 0.15, name


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_contributions_of_updates_with_large_first_rates(kept):
    """Exponent 0 at both steps; 1, 3/2, 2, 3 at the second one if the first rates are kept."""
    p = scalings.naive_ip(c=scalings.large_first_rates) if kept else scalings.ip_llr
    measured = slopes(p(input_scale=1.0), network(3, root_2_relu), 2.0, 2, WIDTHS[1:], 8)
    first, second = (
        [measured[f"{k}_{l}"] for l in range(1, 5)] for k in ("first_update", "update")
    )
    np.testing.assert_allclose(first, [0, 0, 0, 0], rtol=0, atol=0.06)
    expected = [1, 1.5, 2, 3] if kept else [0, 0, 0, 0]
    np.testing.assert_allclose(second, expected, rtol=0, atol=0.06)


@pytest.mark.slow
def test_smooth_ip_llr_starts_to_learn_in_the_second_step():
    """tanh, L = 3: the generic exponent of f_1 is 0, but its coefficient vanishes by symmetry."""
    p, model = scalings.ip_llr(input_scale=1.0), network(3, "tanh")
    measured = slopes(p, model, 1.0, 3, WIDTHS[:4])
    assert tp.classify(p, model).exponents["df_1"] == 0
    assert measured["df_1"] < -0.3
    assert abs(measured["df"]) < 0.2


INITIAL = {
    "standard": (scalings.standard, network(2, "tanh")),
    "ntk": (scalings.ntk, network(2, "tanh")),
    "mup": (scalings.mup, network(2)),
    "naive_ip": (scalings.naive_ip, network(3)),
    "ip_llr-relu2": (scalings.ip_llr, network(2, "relu2")),
    "ip_bias": (scalings.ip_bias, network(2, "tanh", bias=True)),
    "ip_non_centered": (scalings.ip_non_centered, network(2, "elu", bias=True)),
    "ip_non_centered-odd": (scalings.ip_non_centered, network(2, "tanh")),
    "intermediate": (scalings.intermediate(0.75), network(1, "leaky_relu")),
    "pre-NTK": (scalings.golikov(0, -0.5), network(1, "leaky_relu")),
    "ic_mean_field": (scalings.ic_mean_field, network(1, "leaky_relu")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", INITIAL)
def test_exponents_of_initial_functions(case):
    """Typical sizes over 400 seeds: the error of the slope is about 0.05."""
    p, model = INITIAL[case]
    predict, widths, sizes = p.predict(model), (32, 64, 128), []
    for n in widths:
        draw = lambda key, n=n: predict(tp.sample(p.theta(model), key, width=n), POINTS)
        f = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(n), 400))
        sizes.append(np.mean(np.log(np.mean(np.square(f), axis=1))) / 2)
    slope = np.polyfit(np.log(widths), sizes, 1)[0]
    assert abs(slope - tp.classify(p, model).exponents["f_0"]) < 0.2


GOLIKOV = {
    "MF": (-1, 1), "NTK": (-0.5, 0), "sym-default": (-0.5, 0.5), "MF–NTK": (-0.75, 0.5),
    "NTK–sym-def": (-0.5, 0.25), "sym-def–MF": (-0.75, 0.75), "post-MF": (-1.5, 1.5),
    "pre-sym-default": (0, 0), "post-NTK": (-1, 0.5), "pre-NTK": (0, -0.5),
    "triangle": (-0.66, 0.5), "post-MF–NTK": (-1, 0.75), "pre-NTK–sym-def": (0, -0.25),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLIKOV)
def test_first_step_of_every_golikov_region(name):
    """Exponents of Δf_1 and of the weights' increments, widths 2^10 to 2^16, one step each."""
    p, model = scalings.golikov(*GOLIKOV[name]), network(1, "leaky_relu", False)
    measured = slopes(p, model, 0.02, 1, (2**10, 2**13, 2**16), seeds=24)
    regime = tp.classify(p, model)
    assert regime.name == name
    assert abs(measured["df_1"] - regime.exponents["eK"]) < 0.05
    for l in (1, 2):
        assert abs(measured[f"weights_{l}"] - regime.exponents["s"]) < 0.05
