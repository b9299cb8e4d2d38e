"""Statements of HCG on integrable limits that hold for values, gradients or increments.

HCG: Hajjar, Chizat and Giraud, arXiv 2110.15596. Means over replicates are judged by Student's t at
a false alarm of 1e-3 for each test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import golden, refined, statistics
from oracles.helpers import fast_compilation, line_of

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.networks.activations import ACTIVATIONS, resolve

NAMES = ("naive_ip", "ip_llr", "mup", "hp", "hpz", "ip_bias", "ip_non_centered")
NAIVE, LLR, MUP, HP, HPZ, BIAS, MEAN = (getattr(scalings, name)(input_scale=1.0) for name in NAMES)


@pytest.fixture(autouse=True)
def _quick():
    with fast_compilation():
        yield


def sample(t, dtype=np.float32):
    return golden.INPUTS[t : t + 1].astype(dtype), golden.TARGETS[t : t + 1].astype(dtype)


def scaled_relu2(h):
    return np.sqrt(2 / 3).item() / 2 * ACTIVATIONS["relu2"](h)


def linear(f, y):
    """A loss of derivative -y."""
    return -jnp.sum(f * y)


def passes(p, model, state, x):
    """h^1 .. h^L, and dx^1 .. dx^L: derivatives of f with respect to activations."""
    w, phi, h, slopes = p.effective(model, state), resolve(model.activation), [], []
    for l in range(1, model.layers):
        h.append(x @ w[f"W{l}"] + w.get(f"b{l}", 0.0))
        x, slope = jax.jvp(phi, (h[-1],), (jnp.ones_like(h[-1]),))
        slopes.append(slope)
    dx = [jnp.zeros_like(h[-1]) + w[f"W{model.layers}"]]
    for l in range(model.depth, 1, -1):
        dx.insert(0, (dx[0] * slopes[l - 1]) @ w[f"W{l}"].T)
    return h, dx


# Naive-IP -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inner_layers_and_gradients_of_naive_ip_vanish():
    """Proposition 2.3.1, tanh, L = 3, biases everywhere: h^l → 0 for l ≥ 2, n dx^l → 0 for l < L.

    Before and after each of two steps. Layer 1 stays N(0, |ξ|² + 1), and n dx^L stays U^(L+1).
    Exponents are those of mean squares, at initialisation twice the counted ones.
    """
    model = tp.mlp(3, inputs=3, activation="tanh", bias=True)
    point = jnp.asarray(golden.POINTS[:1], jnp.float32)

    def squares(state, start):
        h, dx = passes(NAIVE, model, state, point)
        n = start["W1"].shape[-1]
        seen = {"h": [jnp.mean(v**2) for v in h], "dx": [jnp.mean((n * v) ** 2) for v in dx]}
        return seen | {"moved": jnp.mean((n * dx[-1] - start["W4"]) ** 2)}

    start = tp.sample(NAIVE.theta(model), jax.random.key(0), width=tp.inf, samples=2**11)
    state, counted = start, tp.classify(NAIVE, model).exponents
    for t in range(3):
        found, values = (f(squares)(state, start) for f in (tp.series, tp.limit))
        order = {k: [one.terms[0][0] for one in found[k]] for k in ("h", "dx")}
        assert order["h"][0] == 0 == order["dx"][2]
        assert max(order["h"][1:] + order["dx"][:2]) < 0
        assert [float(v) for v in values["h"][1:]] == [0, 0]
        if t == 0:
            assert order["h"] == [2 * counted[f"h_{l}"] for l in (1, 2, 3)]
            assert order["dx"] == [-2, -1, 0]
        np.testing.assert_allclose(values["h"][0], 1 + np.sum(point**2), rtol=1e-4)
        np.testing.assert_allclose(values["dx"][2], 1, rtol=1e-4)
        assert float(values["moved"]) == 0
        state, _ = tp.limit(NAIVE.step(model, "mse", 1.0))(state, sample(t))


# IP-LLR -------------------------------------------------------------------------------------------

RATES = (1e-3, 0.1, 10.0, 1e3)


def swept(model, width, replicates, rates, **how):
    """f_1, f_2, .. by learning rate, an input of the step: (replicates, steps, points) each."""
    predict, points = LLR.predict(model), jnp.asarray(golden.POINTS)

    def step(theta, batch):
        x, y, eta = batch
        return LLR.step(model, "mse", eta)(theta, (x, y))

    found = {}
    for eta in rates:
        batches = [(*sample(t, float), jnp.asarray(eta)) for t in range(3)]
        run = tp.train(
            step, LLR.theta(model), batches, width=width, key=jax.random.key(0),
            replicates=replicates, observe=lambda state: predict(state, points), progress=False,
            **how,
        )  # fmt: skip
        found[eta] = np.asarray(run.replicates.observations[:, 1:])
    return found


@pytest.mark.slow
def test_ip_llr_with_tanh_is_finite_for_every_rate(float64):
    """Theorem 2.4.1, rates over six decades, three steps; at 0.1 and 10 against networks.

    At 10 twelve of width 2048. At 0.1 their bias, n^-1/2, is larger than their error: extrapolated
    from widths 128 to 1024, for which the normal law holds. 6 comparisons each.
    """
    model = tp.mlp(2, inputs=3, activation="tanh", bias="first")
    limit = swept(model, tp.inf, 4, RATES, samples=2**12)
    assert all(np.all(np.isfinite(f)) and np.abs(f).min() > 0 for f in limit.values())
    wide = swept(model, 2048, 12, (10.0,))[10.0]
    assert statistics.standard_error(wide).max() < 0.1 * np.abs(limit[10.0]).max()
    z = statistics.z_score(wide, limit[10.0])
    assert np.abs(z).max() < statistics.threshold(2 * z.size, degrees=11)
    runs = {
        n: swept(model, n, count, (0.1,))[0.1]
        for n, count in {128: 256, 256: 192, 512: 96, 1024: 48}.items()
    }
    value, error = statistics.extrapolate(runs, power=0.5)
    assert error.max() < 0.02 * np.abs(value).max()
    z = (value - limit[0.1].mean(axis=0)) / np.hypot(error, statistics.standard_error(limit[0.1]))
    assert np.abs(z).max() < statistics.threshold(2 * z.size)


@pytest.mark.slow
def test_ip_llr_with_relu_is_finite_for_every_rate(float64):
    """The same with ReLU; at 0.1 and 2 against the refined limit by particles: 12 comparisons."""
    model = tp.mlp(2, inputs=3, activation="relu", bias="first")
    limit = swept(model, tp.inf, 4, (1e-3, 0.1, 2.0, 1e3), samples=2**12, terms=2)
    assert all(np.all(np.isfinite(f)) for f in limit.values())
    assert all(np.abs(f).max() > 0 for f in limit.values())
    for eta in (0.1, 2.0):
        runs = [
            refined.ip_llr_relu(
                golden.INPUTS[:3], golden.TARGETS[:3], golden.POINTS, 2, eta, 100_000, seed
            )
            for seed in range(8)
        ]
        z = statistics.z_score(limit[eta], runs)
        assert np.abs(z).max() < statistics.threshold(2 * z.size, degrees=3)
        assert statistics.standard_error(limit[eta]).max() < 0.02 * np.abs(limit[eta]).max()


@pytest.mark.slow
def test_first_rates_that_are_kept_diverge_with_relu():
    """ReLU, L = 3, γ at the second step too: f_2 grows like n^3, the contribution of layer 4.

    So it does where χ_0 and χ_1 have one sign. With opposite ones, h^L_2 is negative on all units
    that are alive in x^L_1, E[x^L_1 x^L_2] = 0 exactly, and only the order of what is left is told.
    """
    p = LLR(c=scalings.large_first_rates, first=None)
    model = tp.mlp(3, inputs=3, activation="relu", bias="first")
    step, predict = p.step(model, linear, 1.0), p.predict(model)
    points = jnp.asarray(golden.POINTS, jnp.float32)
    state = tp.sample(p.theta(model), jax.random.key(0), width=tp.inf, samples=2**11, terms=2)
    look = tp.limit(lambda state: predict(state, points))  # here
    one = np.ones(1, np.float32)
    state, _ = tp.limit(step)(state, (sample(0)[0], one))
    assert np.abs(look(state)).min() > 1e-3
    with pytest.raises(tp.DivergenceError, match=r"grows like n\^3") as caught:
        look(tp.limit(step)(state, (sample(1)[0], one))[0])
    line = line_of(test_first_rates_that_are_kept_diverge_with_relu)
    assert (caught.value.location.file, caught.value.location.line) == (__file__, line)
    with pytest.raises(tp.CancellationError, match=r"the unknown part is of order n\^5/2"):
        look(tp.limit(step)(state, (sample(1)[0], -one))[0])


# Hybrids ------------------------------------------------------------------------------------------


def limits(p, model, batches, first=None, eta=0.5, samples=2**11, key=0):
    """f_1, f_2, .. at infinite width in float64; `first` is a batch of χ_0 for the first step."""
    points, seen = jnp.asarray(golden.POINTS), []
    state = tp.sample(p.theta(model), jax.random.key(key), width=tp.inf, samples=samples)
    for t, batch in enumerate(batches):
        chosen = (p.step(model, weighted, eta), first) if first and not t else None
        step, batch = chosen or (p.step(model, "mse", eta), batch)
        state, _ = tp.limit(step)(state, batch)
        seen.append(tp.limit(p.predict(model))(state, points))
    return np.array(seen)


def weighted(f, chi):
    """The loss whose derivative with respect to the outputs is `chi`."""
    return jnp.sum(f * chi)


def relative(a, b):
    return np.abs(a - b).max(axis=tuple(range(1, a.ndim))) / np.abs(b).max()


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1, 2])
def test_hybrids_are_ip_llr_on_the_same_particles(outputs, float64):
    """Theorem 2.4.2, degree 2: given χ_0 = ∂ℓ(y, 0), all steps agree to round-off in float64.

    In muP f_0 → 0 is an average of particles, and 1e-3 or less instead of 0 for 2^11 of them. This
    is all that sets HP and HPZ apart from IP-LLR. Two outputs: minibatches of two samples.
    """
    model = tp.mlp(2, inputs=3, outputs=outputs, activation=scaled_relu2, bias="first")
    batches = [sample(t, float) for t in range(3)]
    if outputs == 2:
        x, y = golden.INPUTS, golden.TARGETS
        batches = [
            (x[t : t + 2], np.stack([y[t : t + 2], -(y[t : t + 2] ** 2)], 1)) for t in (0, 2)
        ]
    x, y = batches[0]
    chi = jax.grad(scalings.mse)(np.zeros_like(y), y)
    expected = limits(LLR, model, batches)
    assert np.abs(expected).min() > 1e-6
    for p in (HP, HPZ):
        assert relative(limits(p, model, batches, (x, chi)), expected).max() < 1e-12
    own = relative(limits(HPZ, model, batches), expected)
    assert 1e-8 < own.max() < 5e-3


# Biases and means ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_increments_of_non_centered_inner_layers_are_one_constant():
    """Theorem A.12.2, elu, L = 4, two steps: W^3_t - W^3_0 acts as one number.

    The deviations over units of (W^l_t - W^l_0) x^(l-1)_t for l = 2 and 3, and over all entries of
    W^3_t - W^3_0, fall like n^-1/2: to 1/4 from width 128 to 2048 (six seeds). Entries of layers 2
    and 4 and the increments of layers 1 and 4 keep theirs. The mean of layer 3 does not vanish and
    is that of the limit: 2 comparisons.
    """
    model = tp.mlp(4, inputs=3, activation="elu", bias=True)
    step, point = MEAN.step(model, "mse", 1.0), jnp.asarray(golden.POINTS[:1], jnp.float32)

    def increments(state, start):
        before, after, x, rows = (*(MEAN.effective(model, s) for s in (start, state)), point, [])
        for l in range(1, 5):
            rows.append(x @ after[f"W{l}"] - x @ before[f"W{l}"])
            x = jax.nn.elu(x @ after[f"W{l}"] + after[f"b{l}"])
        return rows

    def mean(state, start):
        return jnp.mean(increments(state, start)[2])

    def deviations(state, start):
        entries = [state[f"W{l}"] - start[f"W{l}"] for l in (2, 3, 4)]
        units = increments(state, start)
        return jnp.stack([mean(state, start), *map(jnp.std, units + entries)])

    def run(width, key):
        limit = width == tp.inf
        move, look = (tp.limit(step), tp.limit(mean)) if limit else map(jax.jit, (step, deviations))
        start = tp.sample(MEAN.theta(model), jax.random.key(key), width=width, samples=2**12)
        state, seen = start, []
        for t in range(2):
            state, _ = move(state, sample(t))
            seen.append(look(state, start))
        return np.array(seen, float)

    limit = np.array([run(tp.inf, key) for key in range(4)])
    narrow, wide = (np.array([run(n, key) for key in range(6)]) for n in (128, 2048))
    ratio = (wide.mean(axis=0) / narrow.mean(axis=0))[:, 1:]
    units, entries = ratio[:, :4], ratio[:, 4:]
    for collapsed in (units[:, 1], units[:, 2], entries[:, 1]):
        assert np.all(collapsed < 0.4)
    for kept in (units[:, 0], units[:, 3], entries[:, 0], entries[:, 2]):
        assert np.all(kept > 0.6)
    assert np.all(wide[..., 3] < 0.1 * np.abs(wide[..., 0]))
    z = statistics.z_score(wide[..., 0], limit)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    assert np.abs(limit).min() > 0.02


X, Y = golden.INPUTS.astype(np.float32), golden.TARGETS.astype(np.float32)
TWO_OUTPUTS = [(X[t : t + 2], np.stack([Y[t : t + 2], -(Y[t : t + 2] ** 2)], 1)) for t in (0, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ip_bias", "ip_non_centered"])
def test_two_outputs_and_minibatches(name):
    """Two steps on two samples each, against 16 networks of width 1024: 8 comparisons.

    IP-bias is conditioned on its output biases.
    """
    p = getattr(scalings, name)(input_scale=1.0)
    activation = {"ip_bias": "tanh", "ip_non_centered": "elu"}[name]
    model = tp.mlp(3, inputs=3, outputs=2, activation=activation, bias=True)
    theta = p.theta(model)
    if name == "ip_bias":
        theta |= {"b4": jnp.array([0.4, -0.7])}
    predict, points = p.predict(model), jnp.asarray(golden.POINTS, jnp.float32)
    run = lambda width, replicates: np.asarray(
        tp.train(
            p.step(model, "mse", 0.2), theta, TWO_OUTPUTS, width=width, samples=2**11,
            key=jax.random.key(3), replicates=replicates, progress=False,
            observe=lambda state: predict(state, points),
        ).replicates.observations[:, 1:]
    )  # fmt: skip
    limit, finite = run(tp.inf, 4), run(1024, 16)
    z = statistics.z_score(finite, limit)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=15)
    assert statistics.standard_error(finite).max() < 0.1 * np.abs(limit).max()
    assert np.abs(limit[:, 1] - limit[:, 0]).mean() > 0.02
