"""Sampling errors of averages over particles, from the spread between groups of them.

Sobol' points are not independent: their averages are nearer to the truth than the spread of the
particles says. A group of consecutive points is such a net itself, so the averages
of groups differ as averages of smaller nets do: the error is too wide by a factor of about
four where averages over nets of M points are off by 1/M, and right where they gain nothing. For
independent particles it is the ordinary standard error.

What the groups have in common they do not show: each coordinate is divided into M strata, and all
points have one offset in theirs. That adds an error of order 1/M.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

#: Groups of particles. More tell the error better, fewer gain more from large nets.
GROUPS = 16

#: The error from offsets, in standard deviations over M: twice that of averages of cos(z), where
#: groups show nothing else.
_OFFSETS = 4.0

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
    spread = _error(jnp.mean(grouped(z, axis), axis=axis + 1), axis)
    return spread + _OFFSETS / z.shape[axis] * jnp.std(z, axis=axis)


def error_of_product(a: Array, b: Array, dims: Dimensions, axes: tuple[int, int]) -> Array:
    """Standard error of ``lax.dot_general(a, b, dims) / M``, particles along ``axes``."""
    ((ca, cb), (ba, bb)) = dims
    (split_ca, split_ba), (split_cb, split_bb) = _split(ca, ba, axes[0]), _split(cb, bb, axes[1])
    x, y = grouped(a, axes[0]), grouped(b, axes[1])
    means = lax.dot_general(x, y, ((split_ca, split_cb), (split_ba, split_bb)))
    spread = _error(means / x.shape[axes[0] + 1], len(ba))
    # By Cauchy and Schwarz the summands are no larger than the product of these.
    sizes = _size(a, ca, ba, axes[0]), _size(b, cb, bb, axes[1])
    batch = tuple(range(len(ba)))
    size = lax.dot_general(*sizes, (((), ()), (batch, batch)))
    return spread + _OFFSETS / a.shape[axes[0]] * size


def _size(array: Array, contracted: Sequence[int], batch: Sequence[int], axis: int) -> Array:
    """Fourth root of the mean fourth power of a factor, its batch axes first."""
    others = [i for i in contracted if i != axis]
    free = [i for i in range(array.ndim) if i not in (*contracted, *batch)]
    square = jnp.sum(jnp.square(jnp.transpose(array, (*batch, *free, axis, *others))),
                     tuple(range(len(batch) + len(free) + 1, array.ndim)))  # fmt: skip
    return jnp.mean(jnp.square(square), axis=-1) ** 0.25


def error_of_inner(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "r s"]:
    """Standard error of ``<a, b>``, see `noise.inner`."""
    return error_of_product(a, b, (((1,), (1,)), ((), ())), (1, 1))


def deviations_of_inner(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "g r s"]:
    """Errors of ``<a, b>`` with their signs, as groups have them: ``GROUPS`` of them, of which the
    root mean square is the spread in the standard error."""
    x, y = grouped(a, 1), grouped(b, 1)
    groups = x.shape[1]
    means = jnp.einsum("rgm,sgm->grs", x, y) / x.shape[2]
    if groups == 1:
        return jnp.zeros((GROUPS, *means.shape[1:]), means.dtype)
    off = (means - jnp.mean(means, 0)) * np.sqrt(GROUPS / (groups * (groups - 1))).item()
    return jnp.pad(off, ((0, GROUPS - groups), (0, 0), (0, 0)))


#: Rows from which a relative error is told that all rows have in common.
_FEW = 64


def _some(rows: Float[Array, "r m"]) -> Float[Array, "few m"]:
    return rows[:: max(1, len(rows) // _FEW)]


def share_of_averages(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, ""]:
    """Standard error of all ``<a, b>`` relative to their size, from some rows of both."""
    a, b = _some(a), _some(b)
    error, size = (jnp.sqrt(jnp.mean(jnp.square(x))) for x in (error_of_inner(a, b), a @ b.T))
    return error / jnp.where(size > 0, size / a.shape[1], 1)


def error_of_averages(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "r s"]:
    """Standard error of ``<a, b>`` for very many rows ``b``: in proportion to the sizes of these,
    as large as it is for some of them."""
    few = _some(b)
    sizes = [jnp.sqrt(jnp.mean(jnp.square(rows), axis=1)) for rows in (b, few)]
    error = jnp.sqrt(jnp.mean(jnp.square(error_of_inner(a, few)), axis=1))
    size = jnp.sqrt(jnp.mean(jnp.square(sizes[1])))
    return (error / jnp.where(size > 0, size, 1))[:, None] * sizes[0]


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
