"""Integrable parameterizations and their hybrids: exact statements at finite width.

HCG: Hajjar, Chizat and Giraud, arXiv 2110.15596. Data and golden numbers: `oracles.golden`.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import golden, statistics

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.networks.activations import ACTIVATIONS

# The theory's first layer carries no factor, its bias neither.
IP, LLR, MUP, HP, HPZ, BIAS, MEAN = (
    getattr(scalings, name)(input_scale=1.0)
    for name in ("naive_ip", "ip_llr", "mup", "hp", "hpz", "ip_bias", "ip_non_centered")
)
HALF = Fraction(1, 2)


def network(depth, activation, outputs=1, bias="first"):
    return tp.mlp(depth, inputs=3, outputs=outputs, activation=activation, bias=bias)


def weighted(f, chi):
    """The loss whose gradient with respect to the outputs is `chi`."""
    return jnp.sum(f * chi)


def batch(t, outputs=1):
    x, y = golden.INPUTS[t : t + 1], golden.TARGETS[t : t + 1]
    return x, y if outputs == 1 else y[:, None] * np.array([1.0, -0.5])[:outputs]


def draw(p, model, n, seed=0):
    """Parameters in float64, the same standard normals for every parameterization."""
    theta = tp.sample(p.theta(model), jax.random.key(seed), width=n)
    assert theta["W1"].dtype == jnp.float64
    return theta


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# Exponents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "activation", "outer", "inner"),
    [(3, "relu", -2, -2.5), (3, "relu2", -4, -4.5), (5, "relu", -3, -3.5), (5, "relu2", -16, -16.5),
     (3, "gelu", -2, -2.5), (3, "square", -4, -4.5), (1, "relu2", -1, None)],
)  # fmt: skip
def test_first_exponents_of_ip_llr(depth, activation, outer, inner):
    model = network(depth, activation)
    expected = (outer, *[inner] * (depth - 1), outer)
    assert scalings.ip_llr.exponents("first", model) == expected
    assert scalings.ip_llr.exponents("c", model) == (-1, *[-2] * (depth - 1), -1)
    assert scalings.ip_llr.exponents("a", model) == (0, *[1] * (depth - 1), 1)


def test_the_degree_of_an_activation_may_be_given():
    model = tp.mlp(3, inputs=3, activation="relu2", degree=1)
    assert scalings.ip_llr.exponents("first", model) == (-2, Fraction(-5, 2), Fraction(-5, 2), -2)
    with pytest.raises(ValueError, match=r"φ\(0\) is not 0.*subtract φ\(0\), or choose the degree"):
        scalings.ip_llr.theta(tp.mlp(3, inputs=3, activation="softplus"))


def test_exponents_of_the_other_integrable_parameterizations():
    model = network(4, "elu", bias=True)
    first = [Fraction(-5, 2), -3, Fraction(-5, 2), -2, -1]
    assert list(scalings.ip_bias.exponents("first", model)) == first
    biases = scalings.ip_bias.biases
    assert list(biases.exponents("first", model)) == [Fraction(-5, 2), -2, Fraction(-3, 2), -1, 0]
    assert biases.exponents("a", model) == biases.exponents("b", model) == (0,) * 5
    assert biases.exponents("c", model) == (-1, -1, -1, -1, 0)
    assert scalings.ip_bias.exponents("c", model) == (-1, -2, -2, -2, -1)
    assert scalings.ip_non_centered.factors("mean", model) == (0, 1, 1, 1, 1)
    assert scalings.ip_non_centered.exponents("c", model) == (-1, -2, -2, -2, -1)
    assert scalings.hp.factors("shrink", model) == (0, HALF, HALF, HALF, 0)
    assert scalings.hpz.factors("shrink", model) == (0, *[float("inf")] * 3, 0)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_exact_initial_scales(depth, float64):
    """f_0^{IP} = n^{-S/2} f̃_0 and f_0^{muP} = n^{-1/2} f̃_0 for ReLU^p, at any width."""
    n = 24
    for activation in ("relu", "relu2"):
        model = network(depth, activation)
        s = sum(model.homogeneity**k for k in range(depth))
        theta = draw(MUP, model, n)
        integrable, mup = (p.predict(model)(theta, golden.POINTS) for p in (IP, MUP))
        np.testing.assert_allclose(integrable * n ** (float(s) / 2), mup * n**0.5, rtol=1e-12)


# The first update ---------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "relu2", "leaky_relu"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_first_update_of_mup_is_that_of_ip_llr(activation, depth, float64):
    """Effective weights and biases, both with the same derivative of the loss."""
    model, theta = network(depth, activation), {}
    moved = []
    for p in (LLR, MUP):
        theta = draw(p, model, 20)
        after, _ = p.step(model, weighted, 0.7)(theta, (golden.INPUTS[:1], np.array([1.3])))
        change = jax.tree.map(jnp.subtract, p.effective(model, after), p.effective(model, theta))
        moved.append(change)
    for name in moved[0]:
        assert relative(moved[0][name], moved[1][name]) < 1e-12


def trajectory(p, model, theta, eta, first=None, outputs=1, steps=4):
    """f_1, f_2, .. at the points. `first` is a pair (loss, labels) for the first step."""
    predict, state, seen = p.predict(model), theta, []
    for t in range(steps):
        x, y = batch(t, outputs)
        loss, y = ("mse", y) if t or first is None else (first[0], first[1])
        rate = eta if t or first is None else first[2]
        state, _ = p.step(model, loss, rate)(state, (x, y))
        seen.append(predict(state, golden.POINTS))
    return np.array(seen)


def scaled(activation):
    """Sizes of order one: the degree-2 activation explodes doubly exponentially otherwise."""
    factor = {"relu": 1.0, "relu2": 0.4}[activation]
    return lambda h: factor * ACTIVATIONS[activation](h)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(a).max()


@pytest.mark.parametrize("activation", ["relu", "relu2"])
@pytest.mark.parametrize("depth", [2, 3])
def test_hp_is_ip_llr_at_finite_width(activation, depth, float64):
    """Proposition 2.4.1: η_HP(0) = η χ_0^{IP} / χ_0^{HP}, then f_t agree at every later step."""
    model, eta, n = network(depth, scaled(activation)), 0.8, 24
    theta = draw(LLR, model, n)
    x, y = batch(0)
    chi = [float((p.predict(model)(theta, x) - y)[0]) for p in (LLR, HP)]
    expected = trajectory(LLR, model, theta, eta)
    corrected = trajectory(HP, model, theta, eta, ("mse", y, eta * chi[0] / chi[1]))
    assert relative(expected, corrected) < 1e-12
    assert relative(expected, trajectory(HP, model, theta, eta)) > 1e-4
    # The zeroed hybrid agrees in the limit only.
    assert relative(expected, trajectory(HPZ, model, theta, eta, ("mse", y, eta))) > 1e-4


@pytest.mark.parametrize("activation", ["relu", "relu2"])
@pytest.mark.parametrize("depth", [2, 3])
def test_hp_is_ip_llr_with_several_outputs(activation, depth, float64):
    """The vectors χ_0 are not parallel: HP's first update has to use χ_0^{IP} itself."""
    model, eta, n = network(depth, scaled(activation), outputs=2), 0.8, 24
    theta = draw(LLR, model, n)
    x, y = batch(0, 2)
    chi = LLR.predict(model)(theta, x) - y
    expected = trajectory(LLR, model, theta, eta, outputs=2)
    corrected = trajectory(HP, model, theta, eta, (weighted, chi, eta), outputs=2)
    assert relative(expected, corrected) < 1e-12
    assert relative(expected, trajectory(HP, model, theta, eta, outputs=2)) > 1e-4


def test_what_hybrids_keep_of_the_initial_weights(float64):
    model, n = network(3, "relu"), 16
    theta = draw(HP, model, n)
    states = {p.name: p.step(model, "mse", 0.5)(theta, batch(0))[0] for p in (MUP, HP, HPZ)}
    before = MUP.effective(model, theta)
    after = {name: MUP.effective(model, state) for name, state in states.items()}
    for l in (2, 3):
        update = after["mup"][f"W{l}"] - before[f"W{l}"]
        kept = theta[f"W{l}"] / n + update
        np.testing.assert_allclose(after["hp"][f"W{l}"], kept, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(after["hpz"][f"W{l}"], update, rtol=1e-9, atol=1e-12)
    for name in ("W1", "b1", "W4"):
        np.testing.assert_array_equal(states["hp"][name], states["mup"][name])
    # Later steps are those of muP.
    for p in (HP, HPZ):
        assert "initial" not in states[p.name]
        one, two = (q.step(model, "mse", 0.5)(states[p.name], batch(1))[0] for q in (p, MUP))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


# Limits at finite width ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("known", golden.IP_LLR_FIRST_STEP[:2], ids=lambda k: str(k.hidden))
def test_first_function_of_ip_llr_tends_to_its_closed_form(known):
    """ReLU: bias falls as n^-1/2; extrapolated from widths 256 to 2048 it is within its error."""
    model = network(known.hidden, "relu")
    predict, step = LLR.predict(model), jax.jit(LLR.step(model, "mse", known.eta))
    runs = {}
    for n, seeds in ((256, 64), (512, 48), (1024, 24), (2048, 12)):
        thetas = [tp.sample(LLR.theta(model), jax.random.key(s), width=n) for s in range(seeds)]
        runs[n] = np.array([predict(step(t, batch(0))[0], golden.POINTS) for t in thetas])
    expected = golden.table(known)[0]
    value, error = statistics.extrapolate(runs, power=0.5)
    assert np.all(np.abs(value - expected) < 4 * error)
    assert np.all(error < 0.2 * expected)
    distance = [np.abs(runs[n].mean(axis=0) - expected).mean() for n in (256, 2048)]
    assert distance[1] < 0.7 * distance[0]


@pytest.mark.slow
def test_ip_bias_forgets_the_input():
    """f_0 → v^{L+1}; the first updates of layers ≥ 3 and of the output do not depend on ξ_0.

    What remains falls as n^-1/2 (relative differences of two trajectories of one network).
    """
    model = network(3, "tanh", bias=True)
    predict, step = BIAS.predict(model), jax.jit(BIAS.step(model, weighted, 1.0))
    spread, apart, first_layer = [], [], []
    for n in (64, 512):
        theta = tp.sample(BIAS.theta(model), jax.random.key(3), width=n)
        spread.append(float(jnp.abs(predict(theta, golden.POINTS) - theta["b4"]).max()))
        one, two = (step(theta, (golden.INPUTS[t : t + 1], np.ones(1)))[0] for t in (0, 1))
        difference = lambda k, s, t, u: float(
            jnp.linalg.norm(s[k] - t[k]) / jnp.linalg.norm(s[k] - u[k])
        )
        names = ("W3", "b3", "W4", "b4")
        apart.append(max(difference(k, one, two, theta) for k in names))
        first_layer.append(difference("W1", one, two, theta))
    assert spread[1] < 0.15
    assert spread[1] < 0.6 * spread[0]
    assert apart[1] < 0.3
    assert apart[1] < 0.6 * apart[0]
    assert min(first_layer) > 0.5


@pytest.mark.slow
def test_ip_non_centered_collapses_inner_layers():
    """Spread over units: n^-1/2 in layers 2 .. L-1 at every step, in layer L only before training.

    Standard deviations over units, averaged over six seeds, at widths 128 and 2048.
    """
    model = network(4, "elu", bias=True)
    predict, step = MEAN.predict(model), jax.jit(MEAN.step(model, "mse", 1.0))

    def run(n, seed):
        state, rows = tp.sample(MEAN.theta(model), jax.random.key(seed), width=n), []
        for t in range(3):
            effective, x = MEAN.effective(model, state), golden.POINTS[:1].astype(np.float32)
            rows.append([])
            for l in range(1, 5):
                h = x @ effective[f"W{l}"] + effective[f"b{l}"]
                x = jax.nn.elu(h)
                rows[t].append(float(jnp.std(h)))
            if t == 0:  # f_0 → u_{L+1} E[x^L]
                f_0 = float(predict(state, golden.POINTS[:1])[0])
                assert abs(f_0 - float(jnp.mean(x))) < 5 / n**0.5
            state, _ = step(state, batch(t))
        return rows

    narrow, wide = (np.mean([run(n, seed) for seed in range(6)], axis=0) for n in (128, 2048))
    ratio = wide / narrow
    assert np.all(ratio[:, 1:3] < 0.4)  # 1/4 by the theorem
    assert ratio[0, 3] < 0.4
    assert np.all(ratio[1:, 3] > 0.6)
    assert np.all(ratio[:, 0] > 0.6)


# Calibrated base rates ----------------------------------------------------------------------------


@pytest.mark.slow
def test_calibration_equalises_the_contributions_of_updates():
    model, lr = network(4, "relu", outputs=2), 0.1
    theta = tp.sample(LLR.theta(model), jax.random.key(0), width=128)
    x = jax.random.normal(jax.random.key(1), (2, 16, 3))
    batches = [(x[t], jnp.stack([x[t, :, 0], x[t, :, 1] ** 2], axis=1)) for t in (0, 1)]
    rates = scalings.calibrate(LLR, model, theta, batches, "mse", lr, cap=float("inf"))
    assert rates[0] == lr
    after, _ = LLR.step(model, "mse", lr, first_lr=rates)(theta, batches[0])
    new, old = LLR.effective(model, after), LLR.effective(model, theta)
    x, sizes = batches[1][0], []
    for l in range(1, 6):
        sizes.append(float(jnp.mean(jnp.abs(x @ (new[f"W{l}"] - old[f"W{l}"])))))
        x = jax.nn.relu(x @ new[f"W{l}"] + new.get(f"b{l}", 0.0))
    np.testing.assert_allclose(sizes[1:], [1, 1, 1, 0.1], rtol=1e-3)
    capped = scalings.calibrate(LLR, model, theta, batches, "mse", lr, cap=5.0)
    assert capped == tuple(min(rate, 5.0) if l else lr for l, rate in enumerate(rates))
    assert max(capped) == 5.0
    # Later steps use the base rate again.
    one, two = (LLR.step(model, "mse", lr, first_lr=r)(after, batches[1])[0] for r in (rates, None))
    np.testing.assert_array_equal(one["W2"], two["W2"])
    with pytest.raises(ValueError, match="needs two batches, got 1"):
        scalings.calibrate(LLR, model, theta, batches[:1], "mse", lr)
    with pytest.raises(ValueError, match=r"first_lr needs .* whose first step is its own"):
        MUP.step(model, "mse", lr, first_lr=rates)
