"""Sampling errors of averages over particles, from the spread between groups of them.

Sobol' points are not independent: their averages are up to fifty times nearer to the truth than the
spread of the particles says. A group of consecutive points is such a net itself, so the averages
of groups differ as averages of smaller nets do: the error is too wide by a factor of about
four where averages over nets of M points are off by 1/M, and right where they gain nothing. For
independent particles it is the ordinary standard error.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

#: Groups of particles. More tell the error better, fewer gain more from large nets.
GROUPS = 16

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def grouped(z: Array, axis: int) -> Array:
    """The axis of the particles split into groups of consecutive ones: ``(..., G, M/G, ...)``.

    A few particles that fill no group are left out.
    """
    size = z.shape[axis]
    groups = min(GROUPS, size)
    whole = lax.slice_in_dim(z, 0, size // groups * groups, axis=axis)
    return whole.reshape(*z.shape[:axis], groups, size // groups, *z.shape[axis + 1 :])


def error_of_mean(z: Array, axis: int) -> Array:
    """Standard error of the mean of particles along an axis, which is dropped."""
    return _error(jnp.mean(grouped(z, axis), axis=axis + 1), axis)


def error_of_product(a: Array, b: Array, dims: Dimensions, axes: tuple[int, int]) -> Array:
    """Standard error of ``lax.dot_general(a, b, dims) / M``, particles along ``axes``."""
    ((ca, cb), (ba, bb)) = dims
    (ca, ba), (cb, bb) = _split(ca, ba, axes[0]), _split(cb, bb, axes[1])
    x, y = grouped(a, axes[0]), grouped(b, axes[1])
    size = x.shape[axes[0] + 1]
    return _error(lax.dot_general(x, y, ((ca, cb), (ba, bb))) / size, len(ba) - 1)


def error_of_inner(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "r s"]:
    """Standard error of ``<a, b>``, see `noise.inner`."""
    return error_of_product(a, b, (((1,), (1,)), ((), ())), (1, 1))


def _split(
    contracted: tuple[int, ...], batch: tuple[int, ...], axis: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes after one is split in two, of which the first becomes the last of the batch."""
    after = lambda axes: tuple(i + (i >= axis) for i in axes)
    return after(contracted), (*after(batch), axis)


def _error(means: Array, axis: int) -> Array:
    groups = means.shape[axis]
    if groups == 1:
        return jnp.zeros_like(jnp.mean(means, axis))
    return jnp.std(means, axis=axis, ddof=1) / np.sqrt(groups)
