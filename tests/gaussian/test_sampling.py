"""Standard errors of averages over particles, from the spread between groups of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.gaussian import sampling

KEYS = 48


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 5, 16, 64, 70])
def test_the_error_of_a_mean_is_the_spread_of_the_means_of_groups(size, axis):
    shape = [2, 3]
    shape.insert(axis, size)
    z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    groups = min(sampling.GROUPS, size)
    parts = np.moveaxis(z, axis, -1)[..., : size // groups * groups]
    means = parts.reshape(2, 3, groups, -1).mean(-1)
    expected = means.std(-1, ddof=1) / np.sqrt(groups) if groups > 1 else np.zeros((2, 3))
    expected = expected + 4 * z.std(axis) / size  # offsets within strata
    np.testing.assert_allclose(sampling.error_of_mean(z, axis), expected, rtol=1e-5)


def test_the_error_of_a_product_is_that_of_the_mean_of_products():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(5, 4, 128, 3)), generator.normal(size=(128, 5, 6, 3))
    # Particles are contracted and so is the last axis; the axis of length 5 is common.
    dims = (((2, 3), (0, 3)), ((0,), (1,)))
    products = np.einsum("kamt,mkbt->mkab", a, b)
    found = sampling.error_of_product(jnp.asarray(a), jnp.asarray(b), dims, (2, 0))
    of_mean = sampling.error_of_mean(jnp.asarray(products), 0)
    # The part from offsets is bounded by Cauchy and Schwarz.
    assert np.all((found >= of_mean * (1 - 1e-5)) & (found < of_mean + 4 * 12 / 128))
    x, y = generator.normal(size=(2, 64)), generator.normal(size=(3, 64))
    found = sampling.error_of_inner(jnp.asarray(x), jnp.asarray(y))
    of_mean = sampling.error_of_mean(jnp.asarray(x[:, None] * y[None]), 2)
    assert np.all((found >= of_mean * (1 - 1e-5)) & (found < of_mean + 4 * 4 / 64))


n = tp.Width("n")
THETA = {
    "u": tp.normal((n,)),
    "v": tp.normal((n,)),
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0]])


def gram(t: dict[str, jax.Array]) -> jax.Array:
    h = jnp.tanh(X @ t["U"])
    return (h @ h.T).ravel()[1:] / h.shape[-1]


AVERAGES = {
    "a power": lambda t: jnp.mean(t["v"] ** 4),
    "of two vectors": lambda t: jnp.mean(jax.nn.relu(t["u"]) * jax.nn.relu(t["v"])),
    "of a gate": lambda t: jnp.mean((t["u"] * t["v"] > 0.1) * 1.0),
    "of a wave": lambda t: jnp.mean(jnp.cos(t["v"])),
    "of a wave of an image": lambda t: jnp.mean(jnp.cos(t["W"] @ t["v"])),
    "of the absolute value": lambda t: jnp.mean(jnp.abs(t["v"])),
    "a Gram matrix": gram,
}


@pytest.mark.parametrize(("noise", "most"), [("random", 6.0), ("sobol", 8.0)])
@pytest.mark.parametrize("name", AVERAGES)
def test_bars_are_not_below_the_spread_and_not_far_above(name, noise, most):
    """Over 48 keys the spread is known to a tenth, and so is (15 degrees of freedom) the bar.

    A bar below the spread by 1.5, or that far above, is no accident: five standard errors. Means of
    even functions of matched pseudo-random rows are better than those of independent particles.
    """
    leading = tp.leading(AVERAGES[name])
    samples = [
        tp.sample(THETA, jax.random.key(k), width=tp.inf, samples=2048, noise=noise)
        for k in range(KEYS)
    ]
    found = [leading(sampled) for sampled in samples]
    spread = np.std([one.coefficient for one in found], axis=0, ddof=1)
    bars = np.mean([one.stderr for one in found], axis=0)
    assert np.all(bars > spread / 1.5)
    assert np.all(bars < most * spread)
