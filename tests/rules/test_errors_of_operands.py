"""No operation drops the sampling errors of its operands.

Three averages have errors of their own; a function of them is off by at least what first-order
propagation says for independent errors, which a bar may not undercut by more than 1.5 times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tplimit as tp

n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "uvw"}
Function = Callable[[jax.Array], jax.Array]


def base(t: dict[str, jax.Array]) -> jax.Array:
    mean = lambda name, p: jnp.mean(jnp.abs(t[name]) ** p)
    return jnp.stack([mean("v", 1.5), 0.7 * mean("w", 1.3), 0.5 * mean("u", 1.1)])


def positive(x: jax.Array) -> jax.Array:
    """A positive matrix."""
    return jnp.diag(1 + x) + 0.2


FUNCTIONS: dict[str, Function] = {
    "power by an array": lambda x: jnp.power(x, jnp.array([2.0, 3.0, 4.0])),
    "power of numbers by numbers": lambda x: jnp.power(x, x[::-1]),
    "solve": lambda x: jnp.linalg.solve(positive(x), jnp.ones(3)),
    "cholesky": lambda x: jnp.linalg.cholesky(positive(x)),
    "determinant": lambda x: jnp.linalg.det(positive(x)),
    "inverse": lambda x: jnp.linalg.inv(positive(x)),
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(positive(x)),
    "triangular": lambda x: lax.linalg.triangular_solve(jnp.tril(positive(x)), jnp.outer(x, x)),
    "concatenate": lambda x: jnp.concatenate([x**2, x]),
    "logarithm of sums": jax.nn.logsumexp,
    "probed": lambda x: lax.igamma(x, x[::-1]),
    "interpolation": lambda x: jnp.interp(x, jnp.arange(3.0), jnp.arange(3.0) ** 2),
}
MORE: dict[str, Function] = {
    "product": jnp.prod,
    "running product": jnp.cumprod,
    "running sum": jnp.cumsum,
    "running maximum": lax.cummax,
    "sorting": jnp.sort,
    "median": jnp.median,
    "minimum": jnp.min,
    "larger": lambda x: jnp.maximum(x, 0.5 * x[::-1]),
    "selection": lambda x: jnp.where(x > 0.5, x, -x),
    "clip": lambda x: jnp.clip(x, 0.1, 0.6),
    "angle": lambda x: jnp.arctan2(x, x[::-1]),
    "softmax": jax.nn.softmax,
    "norm": jnp.linalg.norm,
    "outer": lambda x: jnp.outer(x, x[::-1]),
    "update of a slice": lambda x: lax.dynamic_update_slice(jnp.ones(5), x, (1,)),
    "scatter": lambda x: jnp.ones(5).at[jnp.array([0, 2, 4])].set(x),
    "scatter and add": lambda x: jnp.ones(5).at[jnp.array([0, 2, 2])].add(x),
    "gather": lambda x: x[jnp.array([2, 0, 0])],
    "repeat": lambda x: jnp.repeat(x, 2),
    "standard deviation": jnp.std,
    "ratio": lambda x: x / jnp.roll(x, 1),
    "negative power": lambda x: x**-2,
    "loop": lambda x: lax.scan(lambda c, a: (c * a + 1, c * a), 1.0, x)[1],
    "map": lambda x: lax.map(lambda a: jnp.sin(a), x),
    "cases": lambda x: lax.select_n(jnp.array([0, 1, 2]), x, x**2, x**3),
    "hypotenuse": lambda x: jnp.hypot(x, x[::-1]),
    "gradient": jax.grad(lambda x: jnp.sum(jnp.exp(x) * jnp.arange(3.0))),
    "a custom derivative": jax.nn.silu,
    "matrix of a diagonal": lambda x: jnp.diag(x) @ x,
}


@pytest.mark.parametrize(
    "name", [*FUNCTIONS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_errors_go_along(name: str):
    function = (FUNCTIONS | MORE)[name]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=4096, noise="random")
    averages = tp.leading(base)(theta)
    found = tp.leading(lambda t: function(base(t)))(theta)
    jacobian = np.asarray(jax.jacfwd(function)(averages.coefficient), float)
    shares = jacobian * np.asarray(averages.stderr, float)
    expected = np.sqrt(np.sum(shares**2, -1))
    bars = np.broadcast_to(np.asarray(found.stderr, float), expected.shape)
    assert np.all(bars >= expected / 1.5 - 1e-9)
    assert np.any(expected > 0)
