"""What the experiments on Golikov's limits compare with: recursions, distances, decisions."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels

import tplimit as tp
from tplimit.commands.data import random_points
from tplimit.reproduction import Measurement, experiments

EXPERIMENT = experiments(Path(__file__).parents[2] / "experiments")["golikov2020"]


def module(name):
    return EXPERIMENT.load(name)


def test_covariances_are_those_of_a_quadrature():
    """E[φ φ] of the leaky ReLU by its integral over angles, at 5 points."""
    space, leak = module("_function_space"), module("_regions").LEAK
    x = np.random.default_rng(0).normal(size=(5, 3))
    value, slope = space.covariances(x)
    phi = lambda h: np.where(h > 0, h, leak * h)
    angles = 2 * np.pi * (np.arange(400_000) + 0.5) / 400_000
    gram = x @ x.T / 3
    for i in range(5):
        for j in range(5):
            scale = np.sqrt(gram[i, i] * gram[j, j])
            tilt = np.arccos(np.clip(gram[i, j] / scale, -1, 1))
            u, v = np.cos(angles), np.cos(angles - tilt)
            # In polar coordinates E r² = 2 of a standard normal pair.
            assert np.mean(phi(u) * phi(v)) * 2 * scale == pytest.approx(value[i, j], abs=1e-6)
            slopes = np.where(u > 0, 1, leak) * np.where(v > 0, 1, leak)
            assert np.mean(slopes) == pytest.approx(slope[i, j], abs=1e-5)


def test_the_recursion_of_a_frozen_kernel_is_gradient_descent_in_function_space():
    """At eK = 0 against the oracle of the tests, for the leaky ReLU's kernel and the logistic."""
    space = module("_function_space")
    data = random_points(6, 3, inputs=4)
    x, y = np.concatenate([data.x, data.x_test]).astype(float), data.y.astype(float)
    start = space.initial_function(x, 0)
    found = space.descend(space.exponents(-0.5, 0), x, y, start, 0.1, 5, math.inf)
    value, slope = space.covariances(x)
    tangent = 128 * value + slope * (x @ x.T)
    derivative = lambda f: -y / (1 + np.exp(y * f[..., :6])) / 6
    expected = kernels.descent(tangent, start, derivative, 0.1, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("point", [(-2 / 3, 0.5), (-0.5, 0.25), (0, -0.25), (-0.75, 0.75)])
def test_recursions_at_finite_widths_tend_to_those_at_infinity(point):
    """The loss derivatives of all orders: -y/2, the true ones, a step function."""
    space = module("_function_space")
    data = random_points(6, 3, inputs=6, seed=393)
    x, y = np.concatenate([data.x, data.x_test]).astype(float), data.y.astype(float)
    start, e = space.initial_function(x, 1), space.exponents(*point)
    run = lambda rho: space.descend(e, x, y, start, 0.25, 3, rho, particles=64)
    apart = [np.abs(run(rho)[1:] - run(math.inf)[1:]).max() for rho in (2.0**20, 2.0**150)]
    assert apart[1] < 1e-3 * np.abs(run(math.inf)).max()
    assert apart[0] > 10 * apart[1]


def test_distance_of_normal_laws():
    """Against scipy's entropies, of many draws; and 0 from itself."""
    script = module("kullback_leibler")
    random = np.random.default_rng(0)
    f = 1.5 + 2 * random.normal(size=(200_000, 1, 1))
    g = 1 + 3 * random.normal(size=(200_000, 1, 1))
    expected = np.log(3 / 2) + (4 + 0.25) / 18 - 0.5
    assert script.distance(f, g)[0] == pytest.approx(expected, abs=0.01)
    assert script.distance(f, f)[0] == pytest.approx(0, abs=1e-12)


def test_exponents_whose_error_does_not_tell():
    script = module("properties")
    fitted = lambda value, stderr: Measurement(value, stderr, 50)
    assert script.is_zero("f_0", fitted(0.02, 0.01)) == "yes"
    assert script.is_zero("K_0", fitted(-0.25, 0.01)) == "no"
    assert script.is_zero("f_0", fitted(0.08, 0.02)) == "?"
    assert script.is_zero("dK", fitted(0.08, 0.02)) == "yes"
    # Of three seeds the interval is twice as wide.
    assert script.is_zero("f_0", Measurement(0.02, 0.02, 2)) == "?"


def test_the_four_parts_are_the_network():
    """f = f_0 + f_a + f_w + f_aw for any increments, for a scaling of three."""
    script, regions = module("decomposition"), module("_regions")
    model, z = regions.network(3), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for p in (regions.LIMITS[name] for name in script.STATED):
        start, moved = (tp.sample(p.theta(model), jax.random.key(i), width=256) for i in (0, 1))
        parts = script.parts(p, start, moved, z)
        end = jax.tree.map(jnp.add, start, moved)
        np.testing.assert_allclose(sum(parts.values()), p.predict(model)(end, z), atol=1e-4)


def test_the_kernel_is_the_change_of_the_logits():
    """K_a + K_w by its formula, and by a small step along the gradient of one logit (IC-MF too)."""
    regions = module("_regions")
    model, z = regions.network(3), np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    for p in regions.LIMITS.values():
        n, q_sigma = 512, -float(p.exponents("a", 1)[1])
        q = -float(p.exponents("c", 1)[0])
        theta = tp.sample(p.theta(model), jax.random.key(0), width=n)
        rho, h = n / 128, z @ theta["W1"]
        phi, slope = np.where(h > 0, h, 0.1 * h), np.where(h > 0, 1, 0.1)
        weighted = slope * np.asarray(theta["W2"])
        expected = rho ** (q + 2 * q_sigma) * (phi @ phi.T + weighted @ weighted.T * (z @ z.T))
        np.testing.assert_allclose(regions.kernel(p, model, theta, z), expected, rtol=1e-3)
