"""Laws of the entries of random parameters, standardised: mean 0 and variance 1."""

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


class Quantiles(NamedTuple):
    """A law by its quantiles.

    Attributes:
        table: quantiles of the standardised law at probabilities ``(i + 1/2) / K``, from the
            smallest to the largest.
        symmetric: whether the law is symmetric.
        smooth: whether no value has a probability of its own; then the quantile function is
            interpolated.
    """

    table: tuple[float, ...]
    symmetric: bool
    smooth: bool

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
    gap = np.abs(np.subtract(one.table, other.table)) / (1 + np.abs(one.table))
    return one[1:] == other[1:] and bool(np.max(gap) < 1e-3)


def truncated(z: Array) -> Array:
    """Standardised truncated normal entries from normal ones."""
    low, high = ndtr(jnp.asarray([-BOUND, BOUND], z.dtype))
    return ndtri(low + (high - low) * ndtr(z)) / TRUNCATED_STD


class EntryLaw(NamedTuple):
    """A law of entries.

    Attributes:
        std: standard deviation of entries of scale 1.
        draw: standardised entries, from a key, a shape and a dtype.
        of_normal: standardised entries from standard normal ones, as which particles are drawn;
            None where there is nothing to draw.
        symmetric: whether the law is symmetric.
        smooth: whether no value has a probability of its own.
    """

    std: float
    draw: Callable[..., Array]
    of_normal: Callable[[Array], Array] | None = None
    symmetric: bool = True
    smooth: bool = True


def _from_normal(function: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda key, shape, dtype: function(jax.random.normal(key, shape, dtype))


def _from_uniform(z: Array) -> Array:
    return 3**0.5 * (2 * ndtr(z) - 1)


def _uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


def _constant(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jnp.zeros(shape, dtype)


def by_quantiles(quantiles: Quantiles) -> EntryLaw:
    """The law with these quantiles; its scale is its standard deviation."""
    function = quantiles.of_normal
    return EntryLaw(1.0, _from_normal(function), function, quantiles.symmetric, quantiles.smooth)


#: By the names that declarations have.
LAWS = {
    "normal": EntryLaw(1.0, jax.random.normal, lambda z: z),
    "truncated normal": EntryLaw(1.0, _from_normal(truncated), truncated),
    "uniform": EntryLaw(3**-0.5, _uniform, _from_uniform),
    "rademacher": EntryLaw(1.0, jax.random.rademacher, jnp.sign, smooth=False),
    "full": EntryLaw(0.0, _constant, smooth=False),
}
