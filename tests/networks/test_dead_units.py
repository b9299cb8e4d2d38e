"""Units on which a leading term is exactly zero: the next term decides, and only where it is known.

IP-LLR with ReLU is the case that matters: after the first step half of the last hidden layer is
dead in the limit, and alive or not at finite width. Means over replicates are judged by Student's
t at a false alarm of 1e-3 for each test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import golden, refined, statistics
from test_parameterizations_limit import functions, network

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.algebra import expansion
from tplimit.errors import CancellationError
from tplimit.gaussian.bank import Bank
from tplimit.interpreter.loop import Context
from tplimit.values.exponents import EXACT_ZERO, HALF, Exponents
from tplimit.values.tensors import tensor

N = tp.Width("n")
ETA = {2: 1.0, 3: 2.0}


def z_scores(runs, expected, error=0.0):
    z = statistics.z_score_to(runs, expected, error)
    return np.abs(z).max() / statistics.threshold(z.size, degrees=len(runs) - 1)


def by_particles(hidden, steps):
    """The refined limit without the interpreter: mean and standard error."""
    runs = [
        refined.ip_llr_relu(
            golden.INPUTS[:steps], golden.TARGETS[:steps], golden.POINTS, hidden, ETA[hidden],
            200_000, seed,
        )
        for seed in range(12)
    ]  # fmt: skip
    return np.mean(runs, axis=0), statistics.standard_error(runs)


def test_the_refined_recursion_has_the_golden_numbers():
    first, later = golden.IP_LLR_FIRST_STEP[0], golden.IP_LLR_LATER_STEPS[0]
    mean, error = by_particles(2, 3)
    np.testing.assert_allclose(mean[0], golden.table(first)[0], atol=4 * error[0].max())
    np.testing.assert_allclose(mean[1:], golden.table(later), atol=later.error)


@pytest.mark.slow
def test_integrable_networks_with_relu_go_on_after_their_first_step():
    """f_1, f_2 against the closed form and the refined limit; f_2 = 0 would be the naive one."""
    runs = functions(scalings.ip_llr, network(2, "relu"), ETA[2], 2, terms=2)
    assert z_scores(runs[:, :1], golden.table(golden.IP_LLR_FIRST_STEP[0])) < 1
    assert z_scores(runs, *by_particles(2, 2)) < 1
    assert runs[:, 1].max() < -0.03


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [2, 3])
def test_integrable_networks_with_relu_for_three_steps(hidden):
    runs = functions(
        scalings.ip_llr, network(hidden, "relu"), ETA[hidden], 3, replicates=8, terms=2
    )
    assert z_scores(runs, *by_particles(hidden, 3)) < 1


@pytest.mark.slow
def test_forgetting_the_initial_weights_kills_the_dead_units():
    """HPZ with ReLU and two hidden layers: the same f_1 as IP-LLR, then exactly zero."""
    runs = functions(scalings.hpz, network(2, "relu"), ETA[2], 2, replicates=2, terms=2)
    same = functions(scalings.ip_llr, network(2, "relu"), ETA[2], 1, replicates=2, terms=2)
    np.testing.assert_allclose(runs[:, 0], same[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(runs[:, 1], 0)


@pytest.mark.slow
def test_minibatches_and_several_outputs_agree_with_wide_networks():
    """Softmax cross-entropy, two points a step: the bias of width 2^16 is below its error of 4."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(3, 2, 3)), rng.integers(0, 3, size=(3, 2))
    batches = [
        (jnp.asarray(a, jnp.float32), jax.nn.one_hot(b, 3)) for a, b in zip(x, labels, strict=True)
    ]
    points = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    model = tp.mlp(2, inputs=3, outputs=3, activation="relu", bias="first")
    p = scalings.ip_llr(input_scale=1.0)
    predict = p.predict(model)

    def run(width, key, **how):
        return tp.train(
            p.step(model, "cross_entropy", 1.0), p.theta(model), batches, width=width,
            key=jax.random.key(key), observe=lambda state: predict(state, points),
            progress=False, **how,
        )  # fmt: skip

    limit = run(tp.inf, 0, samples=2**14, replicates=4)
    wide = np.array([run(tp.Deferred(2**16), seed).observations[1:] for seed in range(6)])
    error = np.hypot(statistics.standard_error(wide), limit.stderr.observations[1:])
    bias = 0.05 * np.abs(wide).max(axis=(0, 2, 3), keepdims=True)[0]  # falls as n^(-1/2)
    assert np.all(np.abs(wide.mean(axis=0) - limit.observations[1:]) < 4 * error + bias)


# --- masks, by hand


def sampled(terms=2):
    theta = {name: tp.normal((N,)) for name in "uvw"}
    return tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**14, terms=terms)


def test_a_vanishing_term_decides_on_dead_units_only():
    """``s relu(u) + w / sqrt(n)`` with a random ``s``: its error counts on live units."""

    def positive(theta):
        s = jnp.mean(theta["v"] ** 2)
        h = s * jax.nn.relu(theta["u"]) + theta["w"] / np.sqrt(theta["w"].shape[0])
        return jnp.mean((h > 0).astype(float))

    assert abs(tp.limit(positive)(sampled()) - 0.75) < 4 * 0.25 / 2**7
    finite = [
        positive(tp.sample({name: tp.normal((N,)) for name in "uvw"}, key, width=2**16))
        for key in jax.random.split(jax.random.key(1), 8)
    ]
    assert abs(np.mean(finite) - 0.75) < 4 * statistics.standard_error(finite) + 2**-8


def test_the_next_term_decides_where_others_cancel():
    """Both known terms cancel, or the first, or a value from itself."""

    def positive(theta, factor, power):
        s, live = jnp.mean(theta["v"] ** 2), jax.nn.relu(theta["u"])
        first = factor * s * live / factor if factor > 1 else s * live
        h = first - s * live + theta["w"] * float(theta["w"].shape[0]) ** power
        return jnp.mean((h > 0).astype(float))

    for factor, power in ((2, -1), (2, -0.5), (1, -0.5), (1, -1)):
        share = tp.limit(lambda theta, how=(factor, power): positive(theta, *how))(sampled())
        assert abs(share - 0.5) < 4 * 0.5 / 2**7


def test_what_vanishes_within_its_error_does_not_decide():
    """Two averages of equal limit are equal but for round-off where particles are matched."""

    def positive(theta):
        factor = jnp.mean(theta["v"] ** 2) - jnp.mean(theta["w"] ** 2)
        h = factor * jax.nn.relu(theta["u"]) + theta["w"] / np.sqrt(theta["w"].shape[0])
        return jnp.mean((h > 0).astype(float))

    for terms in (1, 2):
        with pytest.raises(CancellationError, match="decided by terms that vanish"):
            tp.limit(positive)(sampled(terms))


def test_zeros_of_a_term_are_no_zeros_of_what_else_is_unknown():
    """``relu(u) + O(n^(-1/2))`` everywhere: no comparison may take it for 0 on dead units."""
    ctx = Context(Bank(n=4, terms=2))
    dead = tensor(jnp.array([1.0, 0, 2, 0]), axis=0, zeros=jnp.array([False, True, False, True]))
    unknown = tensor(jnp.zeros(4), EXACT_ZERO, Exponents(-HALF), axis=0)
    assert expansion.total(ctx, [dead]).zeros is not None
    assert expansion.total(ctx, [dead, unknown]).zeros is None


def test_with_one_term_what_is_unknown_of_a_matrix_is_unknown_everywhere():
    """Images with one term have one remainder: what a step leaves unknown in the rows of units
    that are alive counts there."""
    model = tp.mlp(2, inputs=3, activation="relu")
    mup = tp.parameterizations.mup
    theta = tp.sample(mup.theta(model), jax.random.key(0), width=tp.inf, samples=64)
    batch = jax.random.normal(jax.random.key(1), (4, 3)), jnp.ones(4)
    state, _ = tp.limit(mup.step(model, "mse", 0.1))(theta, batch)
    matrix = state["W2"]._value.items.item()
    assert matrix.blocks == () and matrix.remainder == -1
