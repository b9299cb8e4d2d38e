"""Training in function space: against features, networks, the limit, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from oracles import kernels as oracle
from scipy import stats

import tplimit as tp
from tplimit import kernels

RNG = np.random.default_rng(8)
TRAIN, TEST, FEATURES = 12, 5, 40
PHI = RNG.normal(size=(TRAIN + TEST, FEATURES)) / FEATURES**0.5
K = PHI @ PHI.T
TT, ST = K[:TRAIN, :TRAIN], K[TRAIN:, :TRAIN]
Y = RNG.normal(size=(TRAIN, 3))
F0 = RNG.normal(size=(TRAIN + TEST, 3))
SIGNS = np.sign(Y[:, 0])
CLASSES = Y.argmax(axis=1)


def huber(f, y):
    return jnp.mean(optax.huber_loss(f, y))


#: Loss, targets, and whether outputs have an axis.
LOSSES = {
    "mse": ("mse", Y, True),
    "one output": ("mse", Y[:, 0], False),
    "logistic": ("logistic", SIGNS, False),
    "cross-entropy": ("cross_entropy", CLASSES, True),
    "probabilities": ("cross_entropy", np.eye(3)[CLASSES], True),
    "user's own": (huber, Y, True),
}
#: Optimizers that are linear in the gradients.
LINEAR = {
    "none": None,
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.8),
    "Nesterov": optax.sgd(1.0, momentum=0.8, nesterov=True),
    "weight decay": optax.chain(optax.add_decayed_weights(0.05), optax.sgd(1.0)),
    "schedule": optax.sgd(optax.cosine_decay_schedule(1.0, 20), momentum=0.5),
    "accumulated": optax.chain(optax.apply_every(3), optax.scale(-1.0)),
    "averaged": optax.chain(optax.ema(0.7), optax.sgd(1.0)),
    "injected": optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.2, 9)),
}
NONLINEAR = {
    "adam": optax.adam(1.0),
    "adam with a large epsilon": optax.adam(1.0, eps=1e3),
    "rmsprop": optax.rmsprop(1.0),
    "lion": optax.lion(1.0),
    "sign": optax.sign_sgd(1.0),
    "clip": optax.chain(optax.clip(1e-4), optax.sgd(1.0)),
    "clip rarely": optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(1.0)),
    "normalised": optax.chain(optax.normalize_by_update_norm(), optax.sgd(1.0)),
    # Linear, but not the same for all parameters, or not without memory of chance.
    "centralised": optax.chain(optax.centralize(), optax.sgd(1.0)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(1.0)),
    "Adam later": optax.chain(
        optax.conditionally_transform(optax.scale_by_adam(), lambda step: step > 15),
        optax.sgd(1.0),
    ),
}


def by_parameters(loss, y, vector, optimizer, lr, steps, batches):
    """The same with features: f = f_0 + PHI w, in float64, one parameter per feature and output."""
    objective = tp.losses.resolve(loss)
    f0 = F0[:, 0] if vector else F0
    batches = np.arange(TRAIN)[None] if batches is None else batches

    def step(carry, rows):
        w, memory = carry
        g = jax.grad(lambda w: objective(f0[rows] + phi[rows] @ w, jnp.asarray(y)[rows]))(w)
        if optimizer is None:
            updates = -g
        else:
            updates, memory = optimizer.update(g, memory, w)
        return (w + lr * updates, memory), f0 + phi @ w

    with jax.enable_x64(True):
        f0, phi = jnp.asarray(f0), jnp.asarray(PHI)
        w = jnp.zeros((FEATURES, *f0.shape[1:]))
        memory = () if optimizer is None else optimizer.init(w)
        rows = jnp.asarray(batches)[jnp.arange(steps + 1) % len(batches)]
        return np.asarray(jax.lax.scan(step, (w, memory), rows)[1])


def in_function_space(loss, y, vector, optimizer, lr, steps, **how):
    f0 = F0[:, 0] if vector else F0
    run = kernels.train(TT, ST, y, loss, lr, steps, optimizer, f0=(f0[:TRAIN], f0[TRAIN:]), **how)
    return np.concatenate([run.train, run.test], axis=1)


LEFT_TO_SLOW = ("one output", "probabilities", "sgd", "accumulated", "averaged")
MINI = RNG.integers(0, TRAIN, (7, 4))
CASES = [
    *[
        pytest.param("mse", name, None, marks=[pytest.mark.slow] * (name in LEFT_TO_SLOW))
        for name in LINEAR
    ],
    *[
        pytest.param(loss, "Nesterov", MINI, marks=[pytest.mark.slow] * (loss in LEFT_TO_SLOW))
        for loss in LOSSES
    ],
]


@pytest.mark.parametrize(("loss", "optimizer", "batches"), CASES)
def test_parameters_and_coefficients_move_alike(loss, optimizer, batches):
    """The optimizer acts on the parameters of a linear model as on coefficients, to round-off."""
    name, y, outputs = LOSSES[loss]
    case = (name, y, not outputs, LINEAR[optimizer], 0.9, 25)
    expected = by_parameters(*case, batches)
    assert np.abs(expected[-1] - expected[0]).max() > 0.05  # it moves
    for method in ["iterate", "spectral"] if name == "mse" and batches is None else ["auto"]:
        found = in_function_space(*case, method=method, batches=batches)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", NONLINEAR)
def test_other_optimizers_are_refused(name):
    dtype = np.float32 if name in ("adam with a large epsilon", "clip rarely") else np.float64
    with pytest.raises(tp.UnsupportedOperationError, match="not linear in the gradients"):
        kernels.train(TT, None, Y, "mse", 0.5, 30, NONLINEAR[name], dtype=dtype)


def test_optimizers_that_need_more_than_gradients_are_refused():
    with pytest.raises(tp.UnsupportedOperationError, match="cannot be run in function space"):
        kernels.train(TT, None, Y, "mse", 0.5, 3, optax.lbfgs())


@settings(max_examples=12, deadline=None)
@given(
    points=st.sampled_from([1, 2, 7]),
    rank=st.integers(1, 9),
    lr=st.floats(0.01, 1.9),
    seed=st.integers(0, 100),
)
def test_closed_form_is_the_iteration(points, rank, lr, seed):
    """Kernels of any rank, at stable rates; y - f_0 outside of the range of K stays."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(points + 2, rank))
    k = phi @ phi.T / np.linalg.norm(phi[:points], 2) ** 2 * points
    y = rng.normal(size=points)
    closed, iterated = (
        kernels.train(k[:points, :points], k[points:, :points], y, "mse", lr, 30, method=method)
        for method in ("spectral", "iterate")
    )
    np.testing.assert_allclose(closed.train, iterated.train, atol=1e-10)
    np.testing.assert_allclose(closed.test, iterated.test, atol=1e-10)
    np.testing.assert_allclose(closed.loss, 0.5 * np.mean((closed.train - y) ** 2, axis=1))
    assert np.all(np.diff(closed.loss) <= 1e-12)


def test_very_many_steps_need_no_time():
    """Interpolation, and exactly the least-squares part of what cannot be fitted."""
    run = kernels.train(TT, ST, Y, "mse", 1.0, 10**12, record=[10**12])
    np.testing.assert_allclose(run.train[0], Y, atol=1e-9)
    np.testing.assert_allclose(run.test[0], ST @ np.linalg.solve(TT, Y), atol=1e-9)
    phi = PHI[:, :4]
    run = kernels.train(
        phi[:TRAIN] @ phi[:TRAIN].T, phi[TRAIN:] @ phi[:TRAIN].T, Y, "mse", 1.0, 10**9,
        record=[10**9],
    )  # fmt: skip
    w = np.linalg.lstsq(phi[:TRAIN], Y, rcond=None)[0]
    np.testing.assert_allclose(run.test[0], phi[TRAIN:] @ w, atol=1e-5)


def test_long_runs_in_single_precision():
    """Round-off of the kernel is not learnt: no error beyond that of the numbers given."""
    phi = np.concatenate([PHI, 1e-5 * RNG.normal(size=PHI.shape)], axis=1)[:, : FEATURES + 4]
    phi[:, 8:FEATURES] = 0
    k = (phi @ phi.T).astype(np.float32)
    exact = PHI[:, :8] @ PHI[:, :8].T
    for optimizer, steps in ((None, 10**12), (LINEAR["momentum"], 10**4)):
        runs = [
            kernels.train(
                m[:TRAIN, :TRAIN], m[TRAIN:, :TRAIN], Y, "mse", 1.0, steps, optimizer,
                record=[steps],
            )
            for m in (k, exact)
        ]  # fmt: skip
        assert runs[0].train.dtype == "f4"
        np.testing.assert_allclose(runs[0].train, runs[1].train, atol=2e-3)
        np.testing.assert_allclose(runs[0].test, runs[1].test, atol=2e-3)


def test_replicates_are_runs_of_their_own():
    f0 = RNG.normal(size=(4, TRAIN + TEST, 3))
    optimizer = LINEAR["momentum"]
    together = kernels.train(
        TT, ST, CLASSES, "cross_entropy", 1.0, 9, optimizer, f0=(f0[:, :TRAIN], f0[:, TRAIN:])
    )
    for r in (1,):
        one = kernels.train(
            TT, ST, CLASSES, "cross_entropy", 1.0, 9, optimizer, f0=(f0[r, :TRAIN], f0[r, TRAIN:])
        )
        np.testing.assert_allclose(together.train[:, r], one.train, atol=1e-12)
        np.testing.assert_allclose(together.test[:, r], one.test, atol=1e-12)
        np.testing.assert_allclose(together.loss[:, r], one.loss, atol=1e-12)
        np.testing.assert_allclose(together.coefficients[r], one.coefficients, atol=1e-12)
    np.testing.assert_allclose(together.predict(ST, f0[:, TRAIN:]), together.test[-1], atol=1e-12)


def linear_kernel(a, b):
    return a @ b.T


@pytest.mark.parametrize("memory", [10**9, 0], ids=["held", "matrix-free"])
@pytest.mark.parametrize("batches", [None, 4])
def test_kernel_functions_in_blocks(memory, batches):
    how = {"f0": (F0[:TRAIN], F0[TRAIN:]), "batches": batches, "record": [0, 3, 9]}
    arrays = kernels.train(TT, ST, Y, "mse", 0.5, 9, LINEAR["Nesterov"], **how)
    blocks = kernels.train(
        linear_kernel, None, Y, "mse", 0.5, 9, LINEAR["Nesterov"],
        x=PHI[:TRAIN], x_test=PHI[TRAIN:], block=5, memory=memory, **how,
    )  # fmt: skip
    np.testing.assert_allclose(blocks.train, arrays.train, atol=1e-12)
    np.testing.assert_allclose(blocks.test, arrays.test, atol=1e-12)


def test_gram_is_symmetric_and_finds_attributes():
    class Pair:
        def __init__(self, a, b):
            self.nngp, self.ntk = a @ b.T, np.tanh(a @ b.T)

    np.testing.assert_allclose(kernels.gram(Pair, PHI, block=4), np.tanh(K), atol=1e-14)
    np.testing.assert_allclose(kernels.gram(Pair, PHI, PHI[:3], which="nngp"), K[:, :3])
    half = kernels.gram(lambda a, b: a @ b.T + 1e-9 * RNG.normal(), PHI, block=4, dtype=np.float32)
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, half.T)


def test_kernels_of_networks():
    """Given as matrices with attributes, or as the function: the same, in symmetric blocks."""
    network = kernels.mlp(2, "relu", 1.4, 0.1)
    x, x_test = RNG.normal(size=(2, 8, 4))
    y = np.sin(x[:, 0])
    records = kernels.train(network(x), network(x_test, x), y, "mse", 0.5, 4)
    how = {"x": x, "x_test": x_test, "block": 4}
    blocks = kernels.train(network, None, y, "mse", 0.5, 4, **how)
    free = kernels.train(network, None, y, "mse", 0.5, 4, memory=0, **how)
    assert records.test.dtype == blocks.test.dtype == free.test.dtype == "f4"
    np.testing.assert_allclose(blocks.test, records.test, atol=2e-6)
    np.testing.assert_allclose(free.test, records.test, atol=2e-6)
    exact = kernels.train(network, None, y, "mse", 0.5, 4, dtype=np.float64, **how)
    assert exact.test.dtype == "f8"
    np.testing.assert_allclose(blocks.test, exact.test, atol=2e-6)


def test_dtype_follows_the_kernel_and_not_the_flag():
    for flag in (False, True):
        with jax.enable_x64(flag):
            assert kernels.train(TT, ST, Y, "mse", 0.5, 3, method="iterate").train.dtype == "f8"
            single = kernels.train(TT.astype("f4"), ST, Y, "mse", 0.5, 3, method="iterate")
            assert single.train.dtype == single.test.dtype == single.loss.dtype == "f4"
    double = kernels.train(TT, ST, Y, "mse", 0.5, 3, dtype=np.float32)
    assert double.train.dtype == "f4"


# --- continuous time


@pytest.mark.parametrize("loss", ["mse", "logistic", "cross-entropy", "user's own"])
def test_flow_is_the_limit_of_small_steps(loss):
    """The difference falls like the learning rate."""
    name, y, outputs = LOSSES[loss]
    f0 = F0 if outputs else F0[:, 0]
    how = {"f0": (f0[:TRAIN], f0[TRAIN:])}
    flow = kernels.flow(TT, ST, y, name, [0.0, 2.0, 6.0], tolerance=1e-8, **how)
    errors = []
    for lr in (0.02, 0.01):
        run = kernels.train(
            TT, ST, y, name, lr, round(6 / lr), record=[0, round(2 / lr), round(6 / lr)], **how
        )
        errors.append(np.abs(flow.test - run.test).max())
    assert errors[1] < 0.01
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_flow_in_closed_form_is_the_integrated_one():
    closed = kernels.flow(TT, ST, Y, "mse", [0.5, 40.0])
    integrated = kernels.flow(
        TT, ST, Y, lambda f, y: tp.losses.mse(f, y), [0.5, 40.0], tolerance=1e-9
    )
    np.testing.assert_allclose(closed.test, integrated.test, atol=1e-7)
    np.testing.assert_allclose(closed.coefficients, integrated.coefficients, atol=1e-6)


# --- Gaussian processes


def test_regression_is_conditioning():
    noise = 0.3
    a = np.linalg.inv(TT + noise * np.eye(TRAIN))
    for method in ("cholesky", "cg"):
        found = kernels.posterior(
            TT, ST, Y, noise=noise, kernel_ss=K[TRAIN:, TRAIN:], method=method, tolerance=1e-12
        )
        np.testing.assert_allclose(found.mean, ST @ a @ Y, atol=1e-10)
        np.testing.assert_allclose(found.covariance, K[TRAIN:, TRAIN:] - ST @ a @ ST.T, atol=1e-10)
    free = kernels.posterior(
        linear_kernel, linear_kernel, Y, noise=noise, kernel_ss=linear_kernel, memory=10**3,
        x=PHI[:TRAIN], x_test=PHI[TRAIN:], block=5, tolerance=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(free.mean, found.mean, atol=1e-10)
    np.testing.assert_allclose(free.covariance, found.covariance, atol=1e-10)


def test_trained_to_the_end_with_its_own_covariance_the_ensemble_is_the_posterior():
    """Training only the readout samples the posterior (Lee et al., arXiv 1902.06720)."""
    posterior = kernels.posterior(TT, ST, Y, kernel_ss=K[TRAIN:, TRAIN:])
    discrete = kernels.ensemble(K, K, Y, "mse", 1.0, 10**9, record=[10**9])
    continuous = kernels.ensemble(K, K, Y, "mse", times=[1e9])
    for found in (discrete, continuous):
        np.testing.assert_allclose(found.mean[0, TRAIN:], posterior.mean, atol=1e-9)
        for k in range(3):
            np.testing.assert_allclose(
                found.covariance[0, k, TRAIN:, TRAIN:], posterior.covariance, atol=1e-9
            )
        np.testing.assert_allclose(found.std[0, :TRAIN], 0, atol=1e-6)


@pytest.mark.parametrize("batches", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_exact_and_sampled_ensembles_agree(batches):
    """Mean and covariance in standard errors; largest of all entries, a false alarm in 1e4 runs."""
    other = PHI @ np.diag(np.linspace(0.3, 2, FEATURES)) @ PHI.T
    how = {"record": [0, 7], "batches": batches}
    case = (other, K, Y[:, 0], "mse", 0.7, 7, LINEAR["Nesterov"])
    exact = kernels.ensemble(*case, **how)
    assert not np.any(exact.stderr)
    np.testing.assert_allclose(exact.covariance[0], other, atol=1e-12)
    samples = 1000
    found = kernels.ensemble(*case, samples=samples, key=jax.random.key(1), **how)
    z = (found.mean - exact.mean) / found.stderr
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)
    variance = exact.std**2
    scale = np.sqrt((exact.covariance**2 + variance[:, :, None] * variance[:, None]) / samples)
    z = (found.covariance - exact.covariance) / scale
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)


def test_sampled_ensembles_of_several_outputs():
    found = kernels.ensemble(
        K, K, CLASSES, "cross_entropy", 0.7, 5, samples=500, key=jax.random.key(1), record=[0, 5]
    )
    assert found.mean.shape == (2, TRAIN + TEST, 3)
    assert found.covariance.shape == (2, 3, TRAIN + TEST, TRAIN + TEST)
    variance = np.diag(K)[:, None]
    z = (found.std[0] ** 2 / variance - 1) / (2 / 499) ** 0.5
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)


# --- networks


INPUTS = 3
X = RNG.normal(size=(6, INPUTS))
LABELS = {"mse": np.array([1.0, -1.0, 0.5, 1.0]), "logistic": np.array([1.0, -1.0, 1.0, 1.0])}
MOMENTUM = optax.sgd(1.0, momentum=0.7)


def networks(width, loss, replicates, optimizer=None, depth=2, rate=0.5, steps=12, **how):
    model, ntk = tp.mlp(depth, INPUTS, activation="tanh"), tp.parameterizations.ntk
    predict, x = ntk.predict(model), jnp.asarray(X, jnp.float32)
    y = jnp.asarray(LABELS[loss], jnp.float32)
    run = tp.train(
        ntk.step(model, loss, rate, optimizer), ntk.theta(model), [(x[: len(y)], y)] * steps,
        width=width, key=jax.random.key(4), replicates=replicates, progress=False,
        observe=lambda state: predict(state, x), **how,
    )  # fmt: skip
    return np.asarray(run.replicates.observations, np.float64)


def predicted(f0, loss, optimizer=None, depth=2, rate=0.5, steps=12):
    """Training in function space from the networks' own initial functions."""
    _, tangent = oracle.kernels(X, depth, "tanh")
    y = LABELS[loss]
    n = len(y)
    run = kernels.train(
        tangent[:n, :n], tangent[n:, :n], y, loss, rate, steps, optimizer,
        f0=(f0[:, :n], f0[:, n:]),
    )  # fmt: skip
    return np.moveaxis(np.concatenate([run.train, run.test], axis=2), 0, 1)


@pytest.mark.parametrize(
    ("depth", "loss", "optimizer", "widths", "seeds"),
    [
        (1, "mse", MOMENTUM, [256, 1024, 4096], 100),
        pytest.param(1, "logistic", None, [256, 1024, 4096], 100, marks=pytest.mark.slow),
        pytest.param(2, "mse", None, [128, 512, 2048], 48, marks=pytest.mark.slow),
    ],
)
def test_wide_networks_follow_the_frozen_kernel(depth, loss, optimizer, widths, seeds):
    """The same loss, rate and optimizer: the distance falls as n^-1/2."""
    squares = []
    for width in widths:
        f = networks(width, loss, seeds, optimizer, depth, steps=8)
        expected = predicted(f[:, 0], loss, optimizer, depth, steps=8)
        squares.append(np.mean((f - expected) ** 2, axis=(1, 2)))
    assert np.abs(expected[:, -1] - expected[:, 0]).max() > 0.5
    assert np.mean(squares[-1]) ** 0.5 < 0.05
    # Geometric means: the distances have heavy tails.
    logs = np.log(squares) / 2
    slope = np.polyfit(np.log(widths), logs.mean(axis=1), 1)[0]
    spread = logs.std(axis=1, ddof=1)
    error = np.hypot(spread[0], spread[-1]) / seeds**0.5 / np.log(widths[-1] / widths[0])
    assert error < 0.05
    assert abs(slope + 0.5) < 0.03 + 4 * error


@pytest.mark.parametrize(
    ("depth", "loss", "optimizer"),
    [
        pytest.param(1, "mse", MOMENTUM, marks=pytest.mark.slow),
        pytest.param(2, "mse", MOMENTUM, marks=pytest.mark.slow),
        pytest.param(2, "logistic", MOMENTUM, marks=pytest.mark.slow),
    ],
)
def test_the_limit_of_the_program_follows_the_frozen_kernel(depth, loss, optimizer):
    f = networks(tp.inf, loss, 4, optimizer, depth, steps=8, samples=2**10, terms=2)
    expected = predicted(f[:, 0], loss, optimizer, depth, steps=8)
    assert np.abs(expected[:, -1] - expected[:, 0]).max() > 0.5
    assert np.abs(f - expected).max() < 0.05


# --- what is refused


def changed(matrix, index, value):
    matrix = matrix.copy()
    matrix[index] = value
    return matrix


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kernel_tt": changed(TT, (1, 2), np.nan)}, "kernel_tt has entries that are not finite"),
        ({"kernel_st": changed(ST, (1, 2), np.inf)}, "kernel_st has entries that are not finite"),
        ({"kernel_tt": TT[:, :-1]}, r"kernel_tt has shape \(12, 11\), a square matrix"),
        ({"kernel_tt": TT[0]}, r"kernel_tt has shape \(12,\), a matrix is expected"),
        ({"kernel_st": ST.T}, r"kernel_st has shape \(12, 5\): its columns are the 12 training"),
        ({"kernel_tt": changed(TT, (1, 2), 3.0)}, r"not symmetric: entries \(1, 2\) and \(2, 1\)"),
        ({"kernel_tt": TT - 0.5 * np.eye(TRAIN)}, "not positive semidefinite: .* eigenvalue -"),
        ({"kernel_tt": TT * 1j}, "dtype complex128, real numbers are expected"),
        ({"y": Y[:-1]}, r"y has shape \(11, 3\) for 12 training points"),
        ({"y": changed(Y, (0, 0), np.nan)}, "y has entries that are not finite"),
        ({"y": Y[:, 0], "loss": "logistic"}, "needs labels -1 and 1"),
        ({"y": Y[:, 0], "loss": "cross_entropy"}, "cross-entropy needs class numbers"),
        ({"y": CLASSES - 1, "loss": "cross_entropy"}, "class numbers from -1 to 1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"loss": lambda f, y: f - y}, "the loss has to return one number"),
        ({"lr": -0.1}, "lr has to be positive"),
        ({"lr": np.nan}, "lr has to be positive"),
        ({"steps": -1}, "steps has to be a number of steps"),
        ({"f0": F0}, "f0 is a pair"),
        ({"f0": (F0[:TRAIN, 0], F0[TRAIN:])}, "f0 at the training points has shape"),
        ({"f0": (F0[:TRAIN], F0)}, "f0 at the test points has shape"),
        ({"f0": (F0[:TRAIN] * np.nan, F0[TRAIN:])}, "f0 has entries that are not finite"),
        ({"record": [3, 30]}, "record has to hold numbers of steps from 0 to 20"),
        ({"batches": 5}, "batch size of 5 does not divide 12 points"),
        ({"batches": [[0, 12]]}, "indices from 0 to 12, of 12"),
        ({"batches": [0, 1]}, r"\(number of batches, size\) is expected"),
        ({"method": "newton"}, "unknown method 'newton'"),
        ({"method": "spectral", "batches": 4}, "full batches"),
        ({"method": "spectral", "loss": huber}, 'needs loss="mse"'),
        ({"kernel_tt": linear_kernel}, "kernel_tt is a function: give the points"),
        ({"kernel_tt": linear_kernel, "x": PHI[0]}, "the kernel function returned shape|points"),
        ({"kernel_st": linear_kernel}, "kernel_st is a function"),
        ({"kernel_tt": lambda a, b: np.nan * (a @ b.T), "x": PHI[:TRAIN]}, "that are not finite"),
        ({"kernel_tt": lambda a, b: a, "x": PHI[:TRAIN]}, "the kernel function returned shape"),
        ({"kernel_tt": linear_kernel, "x": np.nan * PHI[:TRAIN]}, "x has entries"),
        ({"steps": 10**10}, "choose fewer steps by record="),
    ],
)
def test_bad_input(change, text):
    arguments = {"kernel_tt": TT, "kernel_st": ST, "y": Y, "loss": "mse", "lr": 0.5, "steps": 20}
    with pytest.raises((ValueError, TypeError), match=text):
        kernels.train(**arguments | change)


@pytest.mark.parametrize("optimizer", [None, LINEAR["momentum"]])
@pytest.mark.parametrize("method", ["spectral", "iterate"])
@pytest.mark.filterwarnings("ignore:lr = ", "ignore:The loss has grown")
def test_divergence_is_an_error_and_never_a_nan(method, optimizer):
    with pytest.raises(tp.DivergenceError, match="Training diverges: outputs are not finite"):
        kernels.train(TT, ST, Y, "mse", 60.0, 5000, optimizer, method=method)


@pytest.mark.parametrize("method", ["spectral", "iterate"])
def test_rates_beyond_the_edge_warn(method):
    edge = 2 * TRAIN / np.linalg.eigvalsh(TT)[-1]
    kernels.train(TT, ST, Y, "mse", 0.99 * edge, 5, method=method)
    with pytest.warns(tp.LimitWarning, match="beyond 2 n / λ_max"):
        kernels.train(TT, ST, Y, "mse", 1.01 * edge, 5, method=method)
    with pytest.warns(tp.LimitWarning, match="The loss has grown from"):
        kernels.train(TT, ST, Y, "mse", 2.0 * edge, 20, LINEAR["momentum"], method=method)


def test_regression_with_a_singular_kernel():
    twice = np.repeat([0, 1, 2], 2)
    k, y = K[np.ix_(twice, twice)], np.arange(6.0)
    for method in ("cholesky", "cg"):
        with pytest.raises(ValueError, match="singular within float64 precision"):
            kernels.posterior(k, k[:2], y, method=method)
    assert np.all(np.isfinite(kernels.posterior(k, k[:2], y, noise=0.1).mean))
    with pytest.raises(ValueError, match="noise is a variance"):
        kernels.posterior(k, k[:2], y, noise=-1.0)
    with pytest.raises(ValueError, match="y has shape"):
        kernels.posterior(k, k[:2], y[:3], noise=0.1)


def test_ensembles_are_told_what_is_missing():
    with pytest.raises(ValueError, match="give samples"):
        kernels.ensemble(K, K, SIGNS, "logistic", 0.5, 3)
    with pytest.raises(ValueError, match="either lr and steps, or times"):
        kernels.ensemble(K, K, Y, "mse", 0.5)
    with pytest.raises(ValueError, match="matrices of the same points"):
        kernels.ensemble(K, TT, Y, "mse", 0.5, 3)
    with pytest.raises(ValueError, match="times have to be increasing"):
        kernels.flow(TT, ST, Y, "mse", [1.0, 1.0])


# --- files


def test_files(tmp_path):
    run = kernels.train(TT, ST, CLASSES, "cross_entropy", 1.0, 5)
    loaded = kernels.KernelRun.load(run.save(tmp_path / "a" / "run.safetensors"))
    for name in ("steps", "train", "test", "loss", "coefficients"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(run, name))
    ensemble = kernels.ensemble(K, K, Y, "mse", 0.5, 3)
    saved = ensemble.save(tmp_path / "ensemble.safetensors")
    np.testing.assert_array_equal(kernels.Ensemble.load(saved).std, ensemble.std)
    for made in (run, ensemble):
        assert made.plot(tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no KernelRun of this version"):
        kernels.KernelRun.load(saved)
    with pytest.raises(FileNotFoundError):
        kernels.KernelRun.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(saved.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        kernels.KernelRun.load(tmp_path / "broken")
