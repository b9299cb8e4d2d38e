"""Losses against JAX's own, values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tplimit.networks import losses


def usual(f, y):
    return -jnp.sum(y * jax.nn.log_softmax(f)) / f.shape[0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("classes", [pytest.param(1, marks=pytest.mark.slow), 2, 5])
def test_cross_entropy_is_that_of_softmax(scale, classes):
    """Values, gradients and Hessians, in float64, for probabilities that need not sum to 1."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        f = jnp.asarray(scale * rng.normal(size=(4, classes)))
        y = jnp.asarray(rng.uniform(size=(4, classes)))
        for differentiate in (lambda g: g, jax.grad, jax.hessian):
            found, expected = (differentiate(g)(f, y) for g in (losses.cross_entropy, usual))
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * max(scale, 1))


def test_class_numbers_are_one_hot():
    f = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    y = jnp.array([2, 0, 3])
    np.testing.assert_allclose(
        losses.cross_entropy(f, y), usual(f, jax.nn.one_hot(y, 4)), rtol=1e-6
    )


def test_one_output_is_no_softmax_over_the_batch():
    with pytest.raises(ValueError, match="no classes"):
        losses.cross_entropy(jnp.ones(3), jnp.ones(3))
