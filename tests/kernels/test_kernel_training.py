"""Training in function space: against features, networks, the limit, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from oracles.function_space import (
    CLASSES,
    F0,
    FEATURES,
    LINEAR,
    LOSSES,
    NONLINEAR,
    PHI,
    ST,
    TEST,
    TRAIN,
    TT,
    K,
    Y,
    linear_kernel,
)

import tplimit as tp
from tplimit import kernels
from tplimit.networks import losses

RNG = np.random.default_rng(9)


def by_parameters(loss, y, vector, optimizer, lr, steps, batches):
    """The same with features: f = f_0 + PHI w, in float64, one parameter per feature and output."""
    objective = losses.resolve(loss)
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


@pytest.mark.slow
def test_kernels_of_networks():
    """Given as matrices with attributes, or as the function: the same, in symmetric blocks."""
    network = kernels.mlp(2, "relu", 1.4, 0.1)
    x, x_test = RNG.normal(size=(2, 8, 4))
    y = np.sin(x[:, 0])
    records = kernels.train(network(x), network(x_test, x), y, "mse", 0.25, 4)
    how = {"x": x, "x_test": x_test, "block": 4}
    blocks = kernels.train(network, None, y, "mse", 0.25, 4, **how)
    free = kernels.train(network, None, y, "mse", 0.25, 4, memory=0, **how)
    assert records.test.dtype == blocks.test.dtype == free.test.dtype == "f4"
    np.testing.assert_allclose(blocks.test, records.test, atol=2e-6)
    np.testing.assert_allclose(free.test, records.test, atol=2e-6)
    exact = kernels.train(network, None, y, "mse", 0.25, 4, dtype=np.float64, **how)
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
    integrated = kernels.flow(TT, ST, Y, lambda f, y: losses.mse(f, y), [0.5, 40.0], tolerance=1e-9)
    np.testing.assert_allclose(closed.test, integrated.test, atol=1e-7)
    np.testing.assert_allclose(closed.coefficients, integrated.coefficients, atol=1e-6)
