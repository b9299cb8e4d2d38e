"""Fresh noise rows: independent standard normals, and the moment matching of the limit.

A *row* is one standard normal per coordinate of a width axis, shape ``(M,)``. Averages over a
width are written ``<a, b> = mean(a * b)``.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

NoiseKind = Literal["random"]
NOISE_KINDS: tuple[str, ...] = ("random",)

#: Matching stops (a row stays unmatched) once this share of the particles is used up by rows.
MATCHING_SHARE = 0.5

#: Alternating projections: enough because only variance, never the law, depends on convergence.
_SWEEPS = 3


def draw(
    key: Key[Array, ""],
    start: Int[Array, ""],
    count: int,
    size: int,
    dtype: jnp.dtype,
    kind: str = "random",
) -> Float[Array, "count size"]:
    """Rows ``start, ..., start + count - 1`` of the noise named by ``key``: ``(count, size)``.

    Row ``i`` depends on ``(key, i)`` only, so that a query is a pure function of its store.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise={kind!r} is not known; use one of {', '.join(NOISE_KINDS)}.")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(count))
    return jax.vmap(lambda k: jax.random.normal(k, (size,), dtype))(keys)


def inner(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "r s"]:
    """``<a, b> = mean(a b)`` of all pairs of rows: ``(r, M), (s, M) -> (r, s)``."""
    # The stack first: on CPUs this order of the product is three times faster.
    return (b @ a.T).T / a.shape[-1]


def remove(z: Float[Array, "b m"], basis: Float[Array, "t m"]) -> Float[Array, "b m"]:
    """Remove from the rows of ``z`` their components on the orthonormal rows of ``basis``."""
    return z - inner(z, basis) @ basis


def orthonormalise(z: Float[Array, "b m"], keep: Bool[Array, " b"]) -> Float[Array, "b m"]:
    """Symmetric orthonormalisation ``(<z, z>)^(-1/2) z`` of the rows marked in ``keep``.

    Rows not kept come back as zeros. The symmetric root changes the rows least and favours none.
    """
    z = jnp.where(keep[:, None], z, 0)
    gram = inner(z, z)
    identity = jnp.eye(z.shape[0], dtype=z.dtype)
    gram = jnp.where(keep[:, None] & keep[None, :], gram, identity)
    values, vectors = jnp.linalg.eigh(gram)
    # Rows that projection has annihilated cannot be restored; they stay small instead of NaN.
    values = jnp.maximum(values, 1e-6)
    return (vectors * lax.rsqrt(values)) @ vectors.T @ z


def match(
    z: Float[Array, "b m"],
    keep: Bool[Array, " b"],
    known: Float[Array, "t m"],
    noise_rows: Sequence[Float[Array, "_ m"]],
    used: Int[Array, ""],
) -> Float[Array, "b m"]:
    """Moment matching: make fresh rows orthonormal to each other and to all earlier noise rows.

    Args:
        z: ``(B, M)`` fresh standard normals; ``keep`` ``(B,)`` marks the rows in use.
        known: ``(t, M)`` orthonormal rows on which ``z`` must have no component (mandatory).
        noise_rows: stacks of noise rows of the space, each with orthonormal (or zero) rows.
        used: number of non-zero rows in ``known`` and ``noise_rows`` together.

    Only the limiting law has to be kept in the limit, so fresh noise may be made zero-mean
    (the row of ones is one of ``noise_rows``) and orthonormal. With too few particles for that
    (more than ``MATCHING_SHARE`` of them taken) rows are only made orthogonal to ``known``.
    """
    matched = z
    for _ in range(_SWEEPS):
        overlap = sum((inner(matched, rows) @ rows for rows in noise_rows), jnp.zeros_like(z))
        matched = remove(matched - overlap, known)
    matched = orthonormalise(matched, keep)
    room = used + z.shape[0] <= MATCHING_SHARE * z.shape[1]
    plain = jnp.where(keep[:, None], remove(remove(z, known), known), 0)
    return jnp.where(room, matched, plain)


def joint_rows(
    key: Key[Array, ""], count: int, size: int, dtype: jnp.dtype
) -> Float[Array, "count size"]:
    """``count`` noise rows, zero-mean and orthonormal where ``size`` leaves room for it."""
    z = draw(key, jnp.asarray(0), count, size, dtype)
    ones = jnp.ones((1, size), dtype)
    keep = jnp.ones((count,), bool)
    return match(z, keep, jnp.zeros((1, size), dtype), [ones], jnp.asarray(count + 1))
