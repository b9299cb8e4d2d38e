"""Kinds of noise, one class each, and the streams of rows that are made by them.

A bank carries one object of the kind: what the rows of all its streams share. A row is found by a
key and by a number, so that no two rows are ever the same, in whatever order they are drawn.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, UInt32

from tplimit import arguments
from tplimit.caching.pieces import apart
from tplimit.gaussian import sobol
from tplimit.values.fields import ALONG, COMMON, STATIC


class Noise(ABC):
    """A kind of noise. Objects are pytrees whose fields have roles (``values/fields.py``)."""

    @classmethod
    @abstractmethod
    def of(cls, key: Key[Array, ""], lengths: Sequence[int]) -> Self:
        """What rows of these lengths share."""

    @abstractmethod
    def rows(
        self, keys: Key[Array, " b"], numbers: Int[Array, " b"], size: int, dtype: jnp.dtype
    ) -> Float[Array, "b size"]:
        """Standard normals: row ``b`` depends on its key and its number only."""

    def with_room(self, rows: int) -> Self:
        """The same, for numbers of rows below ``rows``."""
        return self

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Self:
        """For rows that are to be independent of all rows that these have made."""
        return several[0]

    @staticmethod
    def concern(samples: int) -> str | None:
        """Why this many particles are not what one would choose."""
        return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Random(Noise):
    """Pseudo-random normals; rows share nothing."""

    @classmethod
    def of(cls, key: Key[Array, ""], lengths: Sequence[int]) -> "Random":
        return cls()

    def rows(
        self, keys: Key[Array, " b"], numbers: Int[Array, " b"], size: int, dtype: jnp.dtype
    ) -> Float[Array, "b size"]:
        return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sobol(Noise):
    """Randomised Sobol' points; the number of a row is its coordinate.

    Attributes:
        directions: direction numbers of the coordinates that there is room for, or None.
        orders: a random order of the points, one for each length in ``lengths``.
    """

    directions: jax.Array | None = field(default=None, metadata=COMMON)
    orders: tuple[jax.Array, ...] = field(default=(), metadata=ALONG)
    lengths: tuple[int, ...] = field(default=(), metadata=STATIC)

    @classmethod
    def of(cls, key: Key[Array, ""], lengths: Sequence[int]) -> "Sobol":
        orders = tuple(apart(_ordered, key, size=size) for size in lengths)
        return cls(None, orders, tuple(lengths))

    def rows(
        self, keys: Key[Array, " b"], numbers: Int[Array, " b"], size: int, dtype: jnp.dtype
    ) -> Float[Array, "b size"]:
        assert self.directions is not None
        directions = self.directions[:, : sobol.digits(size)]
        points = sobol.Points(directions, self.orders[self.lengths.index(size)])
        return points.normals(keys, numbers, dtype)

    def with_room(self, rows: int) -> "Sobol":
        if not self.lengths:
            return self
        table = sobol.directions(rows, sobol.digits(max(self.lengths)))
        return replace(self, directions=jnp.asarray(table))

    @classmethod
    def joined(cls, several: Sequence["Sobol"]) -> "Sobol":
        orders: dict[int, jax.Array] = {}
        for noise in several:
            for length, order in zip(noise.lengths, noise.orders, strict=True):
                # A new order: new rows have the coordinates of old ones, but no ties to them.
                orders[length] = orders.get(length, order)[order]
        return replace(several[0], orders=tuple(orders.values()), lengths=tuple(orders))

    @staticmethod
    def concern(samples: int) -> str | None:
        if not samples & (samples - 1):
            return None
        lower = 1 << (samples.bit_length() - 1)
        return (
            f"samples={samples} is no power of two: Sobol' points are then balanced less well. "
            f'Use {lower} or {2 * lower}, or noise="random".'
        )


def _ordered(key: Key[Array, ""], *, size: int) -> UInt32[Array, " size"]:
    return sobol.order(jax.random.fold_in(key, size), size)


#: By the names that users give them.
KINDS: Mapping[str, type[Noise]] = {"sobol": Sobol, "random": Random}


def named(value: Any) -> str:
    """The name of a kind of noise.

    Raises:
        ValueError: there is no such kind.
    """
    return arguments.one_of("noise", value, tuple(KINDS))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stream:
    """A stream of noise rows: row ``i`` depends on the key and ``i`` only.

    Attributes:
        key: names the stream.
        noise: the kind.
        first, stride: row ``i`` has the number ``first + stride * i``, so that streams of one
            sample with different ``first`` never share a number.
    """

    key: Key[Array, ""]
    noise: Noise = Random()
    first: int = field(default=0, metadata={"static": True})
    stride: int = field(default=1, metadata={"static": True})

    def rows(
        self, start: Int[Array, ""], count: int, size: int, dtype: jnp.dtype
    ) -> Float[Array, "count size"]:
        """Rows ``start, ..., start + count - 1``, each of ``size`` standard normals."""
        index = start + jnp.arange(count)
        numbers = self.first + self.stride * index
        return apart(_drawn, self.key, self.noise, index, numbers, size=size, dtype=dtype)


def _drawn(
    key: Key[Array, ""],
    noise: Noise,
    index: Int[Array, " b"],
    numbers: Int[Array, " b"],
    *,
    size: int,
    dtype: jnp.dtype,
) -> Float[Array, "b size"]:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    return noise.rows(keys, numbers, size, dtype)
