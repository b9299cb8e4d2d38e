"""What people look at in a network, as plain JAX functions of its arrays, at any width.

Kernels of features and of gradients, the tangent kernel at any time, their alignment with targets
and with each other, sharpness, movement: inside of `tp.limit`, `tp.leading`, `observe=` and
`run.evaluate` they have their limits, on arrays they are what networks have. `density` is for the
arrays of `tp.particles`. None is special: whatever else is plain JAX is an observable as well.

>>> import jax, jax.numpy as jnp, tplimit as tp
>>> n = tp.Width("n")
>>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
>>> kernel = lambda theta: tp.observables.feature_kernel(x @ theta["U"])
>>> theta = {"U": tp.normal((2, n))}
>>> limit = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256)
>>> tp.limit(kernel)(limit).round(3).tolist()
[[1.0, 1.0], [1.0, 2.0]]
>>> kernel(tp.sample(theta, jax.random.key(0), width=256)).shape
(2, 2)
"""

from tplimit.observables.alignment import alignment, target_kernel
from tplimit.observables.densities import density
from tplimit.observables.features import feature_kernel, gradient_kernel, movement
from tplimit.observables.figures import (
    plot_density,
    plot_kernels,
    plot_sharpness,
    plot_spectrum,
)
from tplimit.observables.sharpness import gauss_newton_sharpness, largest_eigenvalue, sharpness
from tplimit.observables.tangent import tangent_kernel

__all__ = [
    "alignment",
    "density",
    "feature_kernel",
    "gauss_newton_sharpness",
    "gradient_kernel",
    "largest_eigenvalue",
    "movement",
    "plot_density",
    "plot_kernels",
    "plot_sharpness",
    "plot_spectrum",
    "sharpness",
    "tangent_kernel",
    "target_kernel",
]


def __dir__() -> list[str]:
    return sorted(__all__)
