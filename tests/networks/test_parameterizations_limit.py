"""`tp.train(width=tp.inf)` of the named parameterizations, against known limits.

The programs are `Parameterization.step` and `.predict`, unchanged. The theory's first layer carries
no factor: `input_scale=1`. Each comparison is of the mean over replicates with known numbers, the
largest |z| bounded by Student's t at a false alarm of 1e-3 for each test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import golden, statistics

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.networks.activations import ACTIVATIONS

POINTS = golden.POINTS.astype(np.float32)
BATCHES = [
    (golden.INPUTS[t : t + 1].astype(np.float32), golden.TARGETS[t : t + 1].astype(np.float32))
    for t in range(4)
]


def scaled_relu2(h):
    return np.sqrt(2 / 3).item() / 2 * ACTIVATIONS["relu2"](h)


def network(depth, activation, bias="first"):
    return tp.mlp(depth, inputs=3, activation=activation, bias=bias)


def functions(p, model, eta, steps, *, width=tp.inf, replicates=6, samples=2**13, key=0, terms=1):
    """f_1, f_2, .. at the points: one row per replicate."""
    p, runs = p(input_scale=1.0), []
    predict, step = p.predict(model), p.step(model, "mse", eta)
    finite = isinstance(width, int)
    move, look = (jax.jit(f) if finite else tp.limit(f) for f in (step, predict))
    for r in range(replicates):
        state = tp.sample(
            p.theta(model), jax.random.key(key + r), width=width, samples=samples, terms=terms
        )
        seen = []
        for batch in BATCHES[:steps]:
            state, _ = move(state, batch)
            seen.append(look(state, POINTS))
        runs.append(seen)
    return np.array(runs, float)


def assert_close(runs, expected, error=0.0):
    z = statistics.z_score_to(runs, expected, error)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=len(runs) - 1)


def test_mup_has_its_golden_numbers():
    runs = functions(scalings.mup, network(2, "tanh"), 1.0, 3)
    assert statistics.standard_error(runs).max() < 4e-3
    assert_close(runs, golden.table(golden.MUP_TANH_REFINED)[:3], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ip_llr", "hp", "hpz"])
def test_degree_two_has_one_limit_by_three_ways(name):
    """IP-LLR: f_1 exact, f_2 and f_3 known to 1e-5; HP is the same, HPZ too (Theorem 2.4.2)."""
    runs = functions(getattr(scalings, name), network(2, scaled_relu2), 0.5, 3, replicates=8)
    first, later = golden.IP_LLR_FIRST_STEP[2], golden.IP_LLR_LATER_STEPS[1]
    assert_close(runs[:, :1], golden.table(first))
    assert np.abs(runs[:, 1:].mean(axis=0) - golden.table(later)).max() < 3 * later.error


@pytest.mark.slow
def test_degree_two_needs_its_own_exponents():
    """With the exponents of degree 1 nothing is learnt: the limit stays 0."""
    model = tp.mlp(2, inputs=3, activation=scaled_relu2, bias="first", degree=1)
    assert tp.classify(scalings.ip_llr, model).trivial
    runs = functions(scalings.ip_llr, model, 0.5, 2, replicates=1)
    np.testing.assert_array_equal(runs, 0)


@pytest.mark.slow
def test_smooth_ip_llr_has_its_golden_numbers():
    """tanh, three hidden layers: f_1 = 0, f_2 and f_3 within the table's error."""
    known = golden.IP_LLR_LATER_STEPS[2]
    runs = functions(scalings.ip_llr, network(3, "tanh"), 1.0, 3, replicates=4)
    assert np.abs(runs.mean(axis=0) - golden.table(known)).max() < known.error


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(known, id=f"relu-{known.hidden}", marks=marks)
        for known, marks in zip(golden.IP_LLR_FIRST_STEP, [(), pytest.mark.slow], strict=False)
    ],
)
def test_first_function_of_ip_llr_is_the_closed_form(known):
    runs = functions(scalings.ip_llr, network(known.hidden, "relu"), known.eta, 1)
    assert_close(runs, golden.table(known), known.error)


@pytest.mark.slow
def test_naive_ip_stays_at_zero_and_mean_field_does_not():
    np.testing.assert_array_equal(functions(scalings.naive_ip, network(3, "tanh"), 1.0, 2), 0)
    two = functions(scalings.naive_ip, network(2, "tanh"), 1.0, 2, replicates=1)
    assert np.abs(two[:, 1]).min() > 1e-3


def test_shallow_mean_field_is_mup():
    """The same limit values, not only the same law: the programs agree."""
    model = network(1, "tanh")
    mup, naive, llr, mean_field = (
        functions(getattr(scalings, name), model, 1.0, 3, replicates=1)
        for name in ("mup", "naive_ip", "ip_llr", "mean_field")
    )
    for other in (naive, llr, mean_field):
        np.testing.assert_allclose(other, mup, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_naive_ip_with_a_sigmoid_does_not_see_its_input_at_first():
    """φ(0) ≠ 0: f_1 is one number for all inputs. From the second step on layer 2 moves as well,
    along E[x^1_s x^1_t], and f_2 depends on the input. Against six networks of width 2048.
    """
    model = network(3, "sigmoid")
    limit = functions(scalings.naive_ip, model, 10.0, 2, replicates=4)
    assert np.abs(limit[:, 0]).min() > 0.01
    np.testing.assert_allclose(limit[:, 0, 0], limit[:, 0, 1], rtol=1e-6)
    apart = limit[:, 1, 0] - limit[:, 1, 1]
    assert np.abs(apart).min() > 1e-3
    finite = functions(scalings.naive_ip, model, 10.0, 2, width=2048, replicates=6)
    z = statistics.z_score(finite[:, 1, 0] - finite[:, 1, 1], apart)
    assert np.abs(z) < statistics.threshold(1, degrees=5)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
def test_ip_bias_given_its_output_bias(depth):
    """Finite networks with the same v^{L+1}, width 2048, eight seeds: 4 comparisons."""
    p, model, value = scalings.ip_bias(input_scale=1.0), network(depth, "tanh", bias=True), 0.4
    predict, step = p.predict(model), p.step(model, "mse", 1.0)

    def run(width, seed):
        theta = p.theta(model) | {f"b{depth + 1}": tp.full((), value)}
        state = tp.sample(theta, jax.random.key(seed), width=width, samples=2**13)
        move, look = (tp.limit(f) if width == tp.inf else jax.jit(f) for f in (step, predict))
        seen = [look(state, POINTS)]
        for batch in BATCHES[:2]:
            state, _ = move(state, batch)
            seen.append(look(state, POINTS))
        return np.array(seen, float)

    limit = np.array([run(tp.inf, seed) for seed in range(4)])
    np.testing.assert_allclose(limit[:, 0], value, atol=2e-3)  # f_0 → v^{L+1} for every input
    finite = np.array([run(2048, seed) for seed in range(8)])
    z = statistics.z_score(finite[:, 1:], limit[:, 1:])
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=7)
    # The spread over inputs is small against the change in time.
    moved = np.abs(limit[:, 2] - limit[:, 1]).mean()
    assert np.abs(limit[:, 1:, 0] - limit[:, 1:, 1]).mean() < 0.05 * moved


@pytest.mark.slow
def test_ip_non_centered_is_the_limit_of_finite_networks():
    """elu, four hidden layers, width 2048: bias n^-1/2 at most, 3 steps."""
    p, model = scalings.ip_non_centered, network(4, "elu", bias=True)
    limit = functions(p, model, 0.2, 3, replicates=4)
    wide = functions(p, model, 0.2, 3, width=2048, replicates=12)
    narrow = functions(p, model, 0.2, 3, width=128, replicates=48)
    distance = lambda runs: np.sqrt(np.mean((runs - limit.mean(axis=0)) ** 2))
    assert distance(wide) < 0.4 * distance(narrow)  # 1/4 by the central limit theorem
    z = statistics.z_score(wide, limit)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=11)
    initial = p(input_scale=1.0)
    theta = tp.sample(initial.theta(model), jax.random.key(0), width=tp.inf, samples=2**13)
    assert np.abs(tp.limit(initial.predict(model))(theta, POINTS)).min() > 0.1


@pytest.mark.slow
def test_several_outputs_and_minibatches():
    """Two outputs and batches of two samples against networks of width 1024; f_1 and f_2."""
    p, model = scalings.ip_llr(input_scale=1.0), tp.mlp(2, inputs=3, outputs=2, activation="tanh")
    predict, step = p.predict(model), p.step(model, "mse", 0.5)
    x, y = golden.INPUTS.astype(np.float32), golden.TARGETS.astype(np.float32)
    batches = [
        (x[t : t + 2], np.stack([y[t : t + 2], -(y[t : t + 2] ** 2)], axis=1)) for t in (0, 2)
    ]

    def run(width, seed):
        move, look = (tp.limit(f) if width == tp.inf else jax.jit(f) for f in (step, predict))
        state = tp.sample(p.theta(model), jax.random.key(seed), width=width, samples=2**12)
        seen = []
        for batch in batches:
            state, _ = move(state, batch)
            seen.append(look(state, POINTS))
        return np.array(seen, float)

    limit = np.array([run(tp.inf, seed) for seed in range(4)])
    finite = np.array([run(1024, seed) for seed in range(16)])
    assert limit.shape == (4, 2, 2, 2)
    assert np.abs(limit[:, 1]).min() > 0.01
    difference = finite.mean(axis=0) - limit.mean(axis=0)
    error = np.hypot(statistics.standard_error(finite), statistics.standard_error(limit))
    assert np.all(np.abs(difference) < 4.5 * error + 0.02)


@pytest.mark.slow
def test_the_reference_width_does_not_change_the_limit():
    """muP in units of width 64 with rates adapted is muP: ρ = n / 64 is a constant factor."""
    model = tp.mlp(1, inputs=3, activation="tanh")
    plain = functions(scalings.mup, model, 1.0, 2, replicates=1)
    for reference in (2.0, 64.0):
        # f = (n / d)^-1 Σ: d times the network, so the output weights start at 1 / d.
        p = scalings.mup(reference=reference, std=(1.0, 1 / reference))
        rates = (reference, 1 / reference)
        runs = []
        q = p(input_scale=1.0)
        state = tp.sample(q.theta(model), jax.random.key(0), width=tp.inf, samples=2**13)
        for batch in BATCHES[:2]:
            state, _ = tp.limit(q.step(model, "mse", rates))(state, batch)
            runs.append(tp.limit(q.predict(model))(state, POINTS))
        np.testing.assert_allclose(np.array(runs)[None], plain, rtol=1e-3, atol=1e-5)


def test_relu_squared_is_its_own_derivative():
    h = jnp.array([-1.0, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(ACTIVATIONS["relu2"]))(h), 2 * jnp.maximum(h, 0))
