"""Sharpness of the Hessian at infinite width beside networks, along training; slower than others.

In standard errors, all entries together: false-alarm rate 1e-3 (Bonferroni, Student's t), and a
bias of 8/n of each entry's size is allowed for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import networks, statistics

import tplimit as tp
from tplimit import observables as obs

X, Y = jnp.asarray(networks.POINTS), jnp.asarray([1.0, -1.0, 0.5])
WIDTH = 512


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "hidden"), [("tanh", 1), ("tanh", 2), ("relu", 1)])
def test_sharpness_beside_networks(activation, hidden):
    net = networks.mup(activation, hidden=hidden, eta=1.2)

    def rates(theta):
        n = theta["v"].shape[0]
        return {"U": 1.2 * n, "W": 1.2, "v": 1.2 * n}

    def value(theta):
        return obs.sharpness(net.predict, "mse", rates, steps=4)(theta, X, Y)

    def runs(width, replicates, **options):
        run = tp.train(
            net.step, net.theta, [(X, Y)] * 3, width=width, key=jax.random.key(2),
            replicates=replicates, keep=[0, -1], progress=False, **options,
        )  # fmt: skip
        return np.stack([run.evaluate(value, step=k).replicates for k in (0, -1)], axis=1)

    limit, finite = runs(tp.inf, 4, samples=2**11), runs(WIDTH, 32)
    error = np.hypot(statistics.standard_error(limit), statistics.standard_error(finite))
    mean = finite.mean(axis=0)
    allowed = statistics.threshold(2, degrees=3) * error + 8 / WIDTH * mean
    assert np.all(np.abs(limit.mean(axis=0) - mean) < allowed)
    assert np.all(error < 0.05 * mean)


@pytest.mark.slow
def test_movement_of_features_in_a_kernel_regime():
    """Features of NTK parameterization move by n^(-1/2): n times the mean square has a limit.

    It depends on the initial function: means over it are compared, with its spread as their error.
    """
    n = tp.Width("n")
    theta = {"U": tp.normal((3, n)), "v": tp.normal((n,))}
    features = lambda t: X @ t["U"] / jnp.sqrt(3.0)
    predict = lambda t: jnp.tanh(features(t)) @ t["v"] / t["v"].shape[0] ** 0.5

    def step(t, _):
        loss, g = jax.value_and_grad(lambda t: 0.5 * jnp.mean((predict(t) - Y) ** 2))(t)
        return jax.tree.map(lambda p, d: p - 0.5 * d, t, g), loss

    def moved(a, b):
        return obs.movement(features(b), features(a), scale=b["v"].shape[0])

    def runs(width, replicates, **options):
        run = tp.train(
            step, theta, [None] * 2, width=width, key=jax.random.key(7), replicates=replicates,
            keep=[0, -1], progress=False, **options,
        )  # fmt: skip
        return run.evaluate(moved, step=[0, -1]).replicates

    limit, finite = runs(tp.inf, 32, samples=2**9), runs(WIDTH, 256)
    error = np.hypot(statistics.standard_error(limit), statistics.standard_error(finite))
    allowed = statistics.threshold(1, degrees=31) * error + 8 / WIDTH * finite.mean()
    assert abs(limit.mean() - finite.mean()) < allowed
    assert limit.mean() > 3 * error
