"""Golikov's limits of classifiers with one hidden layer: statements about values, not exponents.

G-DS: Golikov, arXiv 2006.06574. Means over replicates are judged by Student's t at a false alarm of
1e-3 for each test. In units of the reference network a logit is F = f / ρ^e, ρ = n / 128.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from oracles import kernels, statistics
from oracles.helpers import fast_compilation, line_of
from test_regions_limit import POINTS, REGIONS, X, Y, reference_kernel

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.commands.data import random_points

REFERENCE = 128.0
TRAIN = len(Y)
LABELS = jnp.asarray(Y, jnp.float32)


@pytest.fixture(autouse=True)
def _quick():
    with fast_compilation():
        yield


def in_units_of_the_reference(series):
    exponent, coefficient = series.terms[0]
    return np.asarray(coefficient, float) * REFERENCE ** float(exponent)


# intermediate(q) ----------------------------------------------------------------------------------


def intermediate(q, key, samples=2**12):
    p, model = scalings.intermediate(q), tp.mlp(1, 10, activation="tanh")
    predict = p.predict(model)
    run = tp.train(
        p.step(model, "logistic", 0.05), p.theta(model), [(POINTS[:TRAIN], LABELS)] * 4,
        width=tp.inf, key=jax.random.key(key), replicates=6, samples=samples,
        observe=lambda state: predict(state, POINTS), progress=False,
    )  # fmt: skip
    return np.asarray(run.replicates.observations, float)


@pytest.mark.slow
def test_the_intermediate_limit_depends_neither_on_the_seed_nor_on_q():
    """Kernel descent from f_0 = 0, whatever q: 32 comparisons. The spread over seeds is sampling.

    In the NTK limit, q = 1/2, it is the initial function and does not fall with the samples.
    """
    runs = {q: intermediate(q, 0) for q in (0.6, 0.75, 0.9)}
    for other in (0.6, 0.9):  # the same particles: round-off
        np.testing.assert_allclose(runs[other], runs[0.75], rtol=1e-4, atol=1e-5)
    derivative = lambda f: -Y / (1 + np.exp(Y * f[:TRAIN])) / TRAIN
    expected = kernels.descent(reference_kernel(), np.zeros(len(X)), derivative, 0.05, 4)
    np.testing.assert_array_equal(runs[0.75][:, 0], 0)
    z = statistics.z_score_to(runs[0.75][:, 1:], expected[1:])
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    size = np.abs(expected[1:]).mean()
    spread = {n: intermediate(q, 1, n)[:, 1:].std(axis=0, ddof=1).mean() / size
              for q, n in ((0.75, 2**9), (0.75, 2**13))}  # fmt: skip
    assert spread[2**13] < 0.01
    assert spread[2**13] < 0.5 * spread[2**9]  # 1/4 for independent samples


# sym-default --------------------------------------------------------------------------------------


def leaky(h):
    return jax.nn.leaky_relu(h, 0.1)


SYM_DATA = random_points(5, 4, inputs=6, seed=347)
SYM_POINTS = np.concatenate([SYM_DATA.x, SYM_DATA.x_test])
SYM_Y, SYM_RATE = SYM_DATA.y, 0.25


def sym_networks(n, key, steps=2, dtype=jnp.float32):
    """Initial logits, and F = f / ρ^1/2 after each step, of a network of width n."""
    p, model = scalings.sym_default, tp.mlp(1, 6, activation=leaky)
    step, predict = jax.jit(p.step(model, "logistic", SYM_RATE)), jax.jit(p.predict(model))
    points = jnp.asarray(SYM_POINTS, dtype)
    theta = tp.sample(p.theta(model), jax.random.key(key), width=n)
    state, found = theta, []
    for _ in range(steps):
        state, _ = step(state, (points[: len(SYM_Y)], jnp.asarray(SYM_Y, dtype)))
        found.append(np.asarray(predict(state, points), float) / (n / REFERENCE) ** 0.5)
    return np.asarray(predict(theta, points), float), np.array(found), theta


def heaviside_evolution(A, w, f_0, steps=2):
    """The law of (A, w) moves by the true derivatives at f_0, then by those of a step function."""
    x, found = SYM_POINTS.astype(float), []
    xs, y, A, w = x[: len(SYM_Y)], SYM_Y.astype(float), A.copy(), w.copy()
    F = lambda: REFERENCE * np.mean(A * np.where(w.T @ x.T > 0, 1, 0.1).T * (x @ w), axis=1)
    shown = -y / (1 + np.exp(y * f_0[: len(y)]))
    for _ in range(steps):
        h = xs @ w
        slope = np.where(h > 0, 1, 0.1)
        chi = SYM_RATE * shown / len(y)
        A, w = A - chi @ (slope * h), w - xs.T @ (chi[:, None] * slope * A)
        found.append(F())
        shown = -y * (y * found[-1][: len(y)] < 0)
    return np.array(found)


def relative(a, b):
    """Per step."""
    return np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)


def test_first_step_of_sym_default_is_exact_given_its_initial_logits():
    """With the network's own weights as particles k = 1 is round-off; at k = 2 the step function
    replaces the logistic derivative, wrong where |F| ρ^1/2 is not large: 0.05 at most for d = 2^18
    and less than for 2^14, in the mean of three networks.
    """
    apart = {}
    with jax.enable_x64(True):
        for n in (2**14, 2**18):
            rows = []
            for key in range(3):
                f_0, F, theta = sym_networks(n, key, dtype=jnp.float64)
                A, w = (np.asarray(theta[name], float) for name in ("W2", "W1"))
                rows.append(relative(F, heaviside_evolution(A, w, f_0)))
            apart[n] = np.array(rows)
    assert all(rows[:, 0].max() < 1e-12 for rows in apart.values())
    later = {n: rows[:, 1].mean() for n, rows in apart.items()}
    assert 0 < later[2**18] < min(0.05, 0.5 * later[2**14])
    # Without the initial logits in the first gradient it is another function.
    assert relative(F, heaviside_evolution(A, w, 0 * f_0))[0] > 0.1


@pytest.mark.slow
def test_sym_default_networks_close_on_their_limit():
    """Given f_0, by `tp.series`: at most 0.05 at k = 2, d = 2^18, and half or less of d = 2^14.

    Keys for which the sign of a training logit is not certain are refused, and left out.
    """
    p, model = scalings.sym_default, tp.mlp(1, 6, activation=leaky)
    points, y = jnp.asarray(SYM_POINTS, jnp.float32), jnp.asarray(SYM_Y, jnp.float32)
    given = lambda f, y: scalings.logistic(f + y[1], y[0])
    step, look = tp.series(p.step(model, given, SYM_RATE)), tp.series(p.predict(model))

    def limit(f_0, key):
        state: object = tp.sample(
            p.theta(model), jax.random.key(key), width=tp.inf, samples=2**16, terms=2,
            init_output="zero",
        )  # fmt: skip
        batch, found = (points[: len(y)], jnp.stack([y, f_0[: len(y)]])), []
        for _ in range(2):
            state, _ = step(state, batch)
            found.append(in_units_of_the_reference(look(state, points)))
        return np.array(found)

    apart = {}
    for n in (2**14, 2**18):
        rows, key = [], 0
        while len(rows) < 4 and key < 24:
            f_0, F, _ = sym_networks(n, key)
            with contextlib.suppress(tp.CancellationError):
                rows.append(relative(F, limit(jnp.asarray(f_0, jnp.float32), 1000 + key)))
            key += 1
        assert len(rows) == 4
        apart[n] = np.mean(rows, axis=0)
    assert np.all(apart[2**18] < 0.05)
    assert np.all(apart[2**18] < 0.5 * apart[2**14])  # 1/4 by the central limit theorem


# The default scaling ------------------------------------------------------------------------------

DEFAULTS = {  # with the exponent of f_1: in a deep network h grows too
    "standard": (scalings.standard, 1, "1"),
    "standard, deep": (scalings.standard, 2, "3/2"),
    "golikov": (scalings.golikov(-0.5, q_a=1, q_w=0), 1, "1"),
}


SLOW = {"standard, deep"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in DEFAULTS]
)
@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_the_default_scaling_is_refused_as_divergent(name, loss):
    """After one step the logits grow: the error says so, and where they were asked for.

    With the logistic loss and tanh the second step is refused too, since the sign of a small logit
    is not certain; the growth comes first. Deep networks with tanh saturate: there n^1 cancels.
    """
    p, depth, power = DEFAULTS[name]
    model = tp.mlp(depth, 10, activation="relu" if depth > 1 else "tanh")
    step, predict = p.step(model, loss, 0.05), p.predict(model)
    batch = (POINTS[:TRAIN], LABELS)

    def train():
        observe = lambda state: predict(state, POINTS)  # here
        tp.train(step, p.theta(model), [batch] * 2, width=tp.inf, key=jax.random.key(0),
                 observe=observe, progress=False)  # fmt: skip

    with pytest.raises(tp.DivergenceError, match=f"grows like n.{power}") as caught:
        train()
    assert caught.value.location.file == __file__
    assert caught.value.location.line == line_of(train)
    assert "by the update of theta[" in str(caught.value)
    assert "lower its learning rate by n^(-" in str(caught.value)


def test_a_default_network_written_by_hand_is_refused_at_its_own_line():
    """Variance 1 / fan_in and one learning rate for all: the loss of the second step is n^2."""
    n, x, y = tp.Width("n"), POINTS[:TRAIN], LABELS
    theta = {"U": tp.normal((10, n), std=10**-0.5), "v": tp.normal((n,), std=n**-0.5)}

    def step(theta, batch):
        def loss(t):
            error = jnp.tanh(batch[0] @ t["U"]) @ t["v"] - batch[1]
            return jnp.mean(error**2)  # here

        value, g = jax.value_and_grad(loss)(theta)
        return jax.tree.map(lambda p, d: p - 0.05 * d, theta, g), value

    with pytest.raises(tp.DivergenceError, match=r"grows like n\^2") as caught:
        tp.train(step, theta, [(x, y)] * 2, width=tp.inf, key=jax.random.key(0), progress=False)
    assert caught.value.location.line == line_of(step)

    def second(theta):
        return step(step(theta, (x, y))[0], (x, y))[1]

    state = tp.sample(theta, jax.random.key(0), width=tp.inf)
    with pytest.raises(tp.DivergenceError, match=r"grows like n\^2"):
        tp.limit(second)(state)


# Regions whose loss derivative is -y / 2 throughout -----------------------------------------------


def trajectory(p, model, points, labels, rate, key, steps=3, samples=2**13):
    """F before each step and after the last, and f_0 in the same units; whatever the exponents."""
    step, predict = tp.series(p.step(model, "logistic", rate)), tp.series(p.predict(model))
    state = tp.sample(p.theta(model), jax.random.key(key), width=tp.inf, samples=samples, terms=2)
    found = [in_units_of_the_reference(predict(state, points))]
    for _ in range(steps):
        state, _ = step(state, (points[: len(labels)], labels))
        found.append(in_units_of_the_reference(predict(state, points)))
    return np.array(found)


@pytest.mark.slow
def test_post_ntk_adds_the_same_to_the_initial_function_at_every_step():
    """F_k = F_0 + k Θ y / 2 with the frozen kernel: 24 comparisons, the initial function random."""
    p, model, rate = scalings.golikov(*REGIONS["post-NTK"]), tp.mlp(1, 10, activation="tanh"), 0.02
    runs = np.array([trajectory(p, model, POINTS, LABELS, rate, key) for key in range(6)])
    moved = runs[:, 1:] - runs[:, :1]
    expected = rate * reference_kernel()[:, :TRAIN] @ (Y / 2) / TRAIN
    z = statistics.z_score_to(moved, np.arange(1, 4)[:, None] * expected)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    # The initial function is kept whole, and as large as the Gaussian process says.
    value, _ = kernels.layer("tanh", X @ X.T / 10)
    ratio = np.mean(runs[:, 0] ** 2 / np.diag(value))
    assert 0.3 < ratio < 3
    assert statistics.standard_error(moved).max() < 0.02 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_post_mean_field_moves_by_a_constant_derivative(activation):
    """F_k = 128 E[A_k φ(w_k·x)], A and w driven by -y / 2 at every step: by quadrature over (A, w).

    Three steps at two points: 6 comparisons. The logistic derivative at F itself would be seen.
    """
    p, model = scalings.golikov(*REGIONS["post-MF"]), tp.mlp(1, 2, activation=activation)
    x = np.array([[1.0, -0.5], [-0.3, 1.2]])
    y, rate = np.array([1.0, -1.0]), 1.0
    points, labels = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    runs = np.array([trajectory(p, model, points, labels, rate, key) for key in range(6)])
    phi, slope = {
        "tanh": (np.tanh, lambda h: 1 - np.tanh(h) ** 2),
        "identity": (lambda h: h, np.ones_like),
    }[activation]
    nodes, weights = hermegauss(40)
    weights = weights / weights.sum()
    A_0, u, v = (g.ravel() for g in np.meshgrid(nodes, nodes, nodes, indexing="ij"))
    mass = np.einsum("i,j,k->ijk", weights, weights, weights).ravel()

    def evolved(derivative):
        A, w, F = A_0 / REFERENCE**0.5, np.stack([u, v]) / 2**0.5, [np.zeros(2)]
        for _ in range(3):
            h, chi = x @ w, rate * derivative(F[-1]) / len(y)
            A, w = A - chi @ phi(h), w - x.T @ (chi[:, None] * slope(h) * A)
            F.append(REFERENCE * (phi(x @ w) * A) @ mass)
        return np.array(F[1:])

    expected = evolved(lambda F: -y / 2)
    z = statistics.z_score_to(runs[:, 1:], expected)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    error = statistics.standard_error(runs[:, 1:])
    assert np.all(error < 0.02 * np.abs(expected).max())
    other = evolved(lambda F: -y / (1 + np.exp(y * F)))
    assert np.abs(other - expected).max() > 20 * error.max()


# Two outputs and minibatches ----------------------------------------------------------------------

TARGETS = np.stack([Y, Y**2 * np.array([0.5, -0.2, 0.3, 0.1, -0.4, 0.8])], axis=1)
MINIBATCHES = [slice(0, 3), slice(3, 6), slice(1, 4)]


def batches_of(values):
    return [jnp.asarray(values[part], jnp.float32) for part in MINIBATCHES]


@pytest.mark.slow
def test_two_outputs_of_the_intermediate_limit_are_two_kernel_machines():
    """Squared loss, three minibatches: F_k+1 = F_k - Θ (F_k - y) / B; 48 comparisons."""
    p, model = scalings.intermediate(0.75), tp.mlp(1, 10, outputs=2, activation="tanh")
    predict, rate = p.predict(model), 0.02
    run = tp.train(
        p.step(model, "mse", rate), p.theta(model),
        list(zip(batches_of(X), batches_of(TARGETS), strict=True)), width=tp.inf,
        key=jax.random.key(0), replicates=6, samples=2**12,
        observe=lambda state: predict(state, POINTS), progress=False,
    )  # fmt: skip
    kernel, F, expected = rate * reference_kernel(), np.zeros((len(X), 2)), []
    for part in MINIBATCHES:
        F = F - kernel[:, part] @ (F[part] - TARGETS[part]) / 3
        expected.append(F)
    runs = np.asarray(run.replicates.observations, float)[:, 1:]
    z = statistics.z_score_to(runs, expected)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    assert statistics.standard_error(runs).max() < 0.02 * np.abs(expected).max()


@pytest.mark.slow
def test_two_outputs_of_corrected_mean_field_given_the_initial_function():
    """Six networks of width 2^15, each against the limit from its own f_0: 48 comparisons.

    The limit starts at 0 and is trained at f + f_0; without the correction it would start at 0.
    """
    p, model = scalings.ic_mean_field, tp.mlp(1, 10, outputs=2, activation="tanh")
    given = lambda f, y: scalings.mse(f + y[1], y[0])
    step, predict, rate = jax.jit(p.step(model, "mse", 0.02)), jax.jit(p.predict(model)), 0.02
    plain = p(initial_a=None)
    look, pairs = plain.predict(model), ([], [])
    for key in range(6):
        state = tp.sample(p.theta(model), jax.random.key(key), width=2**15)
        f_0, seen = predict(state, POINTS), []
        for x, y in zip(batches_of(X), batches_of(TARGETS), strict=True):
            state, _ = step(state, (x, y))
            seen.append(predict(state, POINTS))
        labels = zip(batches_of(TARGETS), batches_of(np.asarray(f_0)), strict=True)
        batches = [(x, jnp.stack(y)) for x, y in zip(batches_of(X), labels, strict=True)]
        run = tp.train(
            plain.step(model, given, rate), plain.theta(model), batches, width=tp.inf, terms=2,
            init_output="zero", samples=2**13, key=jax.random.key(100 + key),
            observe=lambda state: look(state, POINTS), progress=False,
        )  # fmt: skip
        pairs[0].append(np.asarray(seen, float))
        pairs[1].append(run.observations[1:] + np.asarray(f_0, float))
    networks, limits = map(np.array, pairs)
    z = statistics.z_score_to(networks - limits, 0.0)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=5)
    size = lambda f: np.sqrt(np.mean(f**2))
    assert size(networks - limits) < 0.05 * size(limits)
    assert size(limits.std(axis=0)) > 0.2 * size(limits)  # the initial functions matter
