"""Laws of the entries of random parameters."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

#: A normal law is cut off at so many of its standard deviations, as initialisers do.
BOUND = 2.0
#: The standard deviation that is left of it.
TRUNCATED_STD = 0.87962566103423978


#: How far quantiles of one law may be off, in standard deviations or of their size.
_ALIKE = 1e-3


class Quantiles(NamedTuple):
    """A law by its quantiles.

    Attributes:
        table: quantiles at probabilities ``(i + 1/2) / K``, from the smallest to the largest. They
            are neither centred nor of variance 1: where single values have a probability they are
            these values exactly.
        std: standard deviation.
        symmetric: whether the law is symmetric about 0.
        smooth: whether no value has a probability of its own; then the quantile function is
            interpolated.
        order, heavy: see `bits.Entry`.
    """

    table: tuple[float, ...]
    std: float
    symmetric: bool
    smooth: bool
    order: int = 1
    heavy: bool = False

    @property
    def mirrored(self) -> "Quantiles":
        """The law of minus such an entry."""
        return self._replace(table=tuple(-entry for entry in reversed(self.table)))

    def of_normal(self, z: Array) -> Array:
        table = jnp.asarray(self.table, z.dtype)
        place = ndtr(z) * len(table) - 0.5
        if self.smooth:
            return jnp.interp(place, jnp.arange(len(table), dtype=z.dtype), table)
        return table[jnp.clip(jnp.round(place).astype(int), 0, len(table) - 1)]


def alike(one: Quantiles | None, other: Quantiles | None) -> bool:
    """Whether two laws have the same quantiles, but for round-off."""
    if one is None or other is None:
        return one is other
    gap = np.abs(np.subtract(one.table, other.table)) / (one.std + np.abs(one.table))
    return one[2:] == other[2:] and bool(np.max(gap) < _ALIKE)


def truncated(z: Array) -> Array:
    """Standardised truncated normal entries from normal ones."""
    low, high = ndtr(jnp.asarray([-BOUND, BOUND], z.dtype))
    return ndtri(low + (high - low) * ndtr(z)) / TRUNCATED_STD


class EntryLaw(NamedTuple):
    """A law of entries.

    Attributes:
        std: standard deviation of entries of scale 1.
        draw: entries from a key, a shape and a dtype; standardised, where the law has a name.
        of_normal: the same from standard normal ones, as which particles are drawn; None where
            there is nothing to draw.
        symmetric: whether the law is symmetric.
        smooth: whether no value has a probability of its own.
        order, heavy: see `bits.Entry`.
        positive: whether no entry is negative.
    """

    std: float
    draw: Callable[..., Array]
    of_normal: Callable[[Array], Array] | None = None
    symmetric: bool = True
    smooth: bool = True
    order: int = 1
    heavy: bool = False
    positive: bool = False


def _from_normal(function: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda key, shape, dtype: function(jax.random.normal(key, shape, dtype))


def _from_uniform(z: Array) -> Array:
    return 3**0.5 * (2 * ndtr(z) - 1)


def _uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


@jax.custom_batching.sequential_vmap
def _factors(z: Array) -> tuple[Array, Array]:
    """One after the other: decompositions of several stacks at a time block each other on CPUs."""
    q, r = jnp.linalg.qr(z)
    return q, r


def _orthogonal(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Orthonormal rows or columns, whichever are fewer, uniformly distributed; of unit entries."""
    *stack, rows, columns = shape
    tall = (*stack, max(rows, columns), min(rows, columns))
    drawn = jax.random.normal(key, tall, dtype)
    q, r = functools.reduce(lambda f, _: jax.vmap(f), stack, _factors)(drawn)
    q = q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None, :] * max(rows, columns) ** 0.5
    return q if rows >= columns else jnp.swapaxes(q, -1, -2)


def _constant(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jnp.zeros(shape, dtype)


def by_quantiles(quantiles: Quantiles) -> EntryLaw:
    """The law with these quantiles."""
    function = quantiles.of_normal
    return EntryLaw(
        quantiles.std, _from_normal(function), function, quantiles.symmetric, quantiles.smooth,
        quantiles.order, quantiles.heavy, quantiles.table[0] >= 0,
    )  # fmt: skip


#: By the names that declarations have.
LAWS = {
    "normal": EntryLaw(1.0, jax.random.normal, lambda z: z),
    "truncated normal": EntryLaw(1.0, _from_normal(truncated), truncated),
    "uniform": EntryLaw(3**-0.5, _uniform, _from_uniform),
    "rademacher": EntryLaw(1.0, jax.random.rademacher, jnp.sign, smooth=False),
    # A few rows of a wide one are independent in the limit, but for being orthonormal.
    "orthogonal": EntryLaw(1.0, _orthogonal, lambda z: z),
    "full": EntryLaw(0.0, _constant, smooth=False),
}
