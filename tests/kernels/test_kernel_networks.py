"""Training in function space is what wide networks, and the limit of their program, do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import kernels as oracle

import tplimit as tp
from tplimit import kernels

RNG = np.random.default_rng(8)


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
