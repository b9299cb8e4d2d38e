"""Deferred Gaussian matrices: revealed as they are queried, never formed.

``G`` is an ``n_out x n_in`` matrix with independent ``N(0, 1)`` entries. A store keeps, with
``<a, b> = mean(a b)`` over a width axis,

* ``Q`` ``(C, n_in)`` orthonormal: input directions already revealed, and ``Z`` ``(C, n_out)``:
  the fresh parts of their images under ``G / sqrt(n_in)``;
* ``P`` ``(C, n_out)`` orthonormal: output directions already revealed, and ``H`` ``(C, n_in)``:
  the fresh parts of their images under ``G^T / sqrt(n_out)``.

``C`` is a fixed capacity; rows beyond the counts ``r`` and ``t`` are zero, so that no mask is
needed when reading. A query ``G x / sqrt(n_in)`` for a block of rows ``x`` is::

    c = <Q, x>      b = sqrt(n_in / n_out) <H, x>      x_perp = x - Q^T c = Q_new^T R
    G x / sqrt(n_in) = Z^T c + P^T b + Z_new^T R

and the transposed query is the same with ``(Q, Z)`` and ``(P, H)`` exchanged. The term ``P^T b``
is the correction ``Z-dot`` of the Tensor Program (Stein's lemma: ``<H, x>`` estimates the expected
derivative). With arrays of true width this is exactly a dense Gaussian matrix in law; with arrays
of ``M`` particles it is its infinite-width limit.

Source: the conditioning argument of Yang, *Tensor Programs III* (arXiv 2009.10685), appendix on
the Master Theorem, used constructively.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from tplimit.gaussian import noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Store:
    """What has been revealed of one Gaussian matrix (see the module's text)."""

    Q: Float[Array, "c n_in"]
    Z: Float[Array, "c n_out"]
    P: Float[Array, "c n_out"]
    H: Float[Array, "c n_in"]
    r: Int[Array, ""]
    t: Int[Array, ""]
    key_Z: Key[Array, ""]
    key_H: Key[Array, ""]

    @property
    def T(self) -> "Store":
        """The store of the transposed matrix: the same arrays with the roles exchanged."""
        return Store(
            Q=self.P, Z=self.H, P=self.Q, H=self.Z, r=self.t, t=self.r,
            key_Z=self.key_H, key_H=self.key_Z,
        )  # fmt: skip

    @property
    def capacity(self) -> int:
        return int(self.Q.shape[0])


class Law(NamedTuple):
    """How fresh rows are drawn: at finite width exact in law, in the limit moment-matched.

    ``tolerance``: a new direction is dropped when its second moment is below ``tolerance`` times
    that of the row it comes from.
    """

    exact: bool
    tolerance: float
    kind: str = "random"


class Answer(NamedTuple):
    """Image of a block of rows, the store that remembers the query, coordinates of the rows."""

    image: Float[Array, "b n_out"]  # G x / sqrt(n_in)
    store: Store
    coordinates: Float[Array, "b c"]  # <Q, x>, the new directions included


def empty_store(
    key: Key[Array, ""], n_out: int, n_in: int, capacity: int, dtype: jnp.dtype
) -> Store:
    """A Gaussian matrix of which nothing has been revealed yet."""
    key_Z, key_H = jax.random.split(key)
    inputs = jnp.zeros((capacity, n_in), dtype)
    outputs = jnp.zeros((capacity, n_out), dtype)
    zero = jnp.zeros((), jnp.int32)
    return Store(inputs, outputs, outputs, inputs, zero, zero, key_Z, key_H)


def grown(store: Store, capacity: int) -> Store:
    """The same store with room for ``capacity`` rows on each side."""
    extra = capacity - store.capacity
    if extra <= 0:
        return store
    stacks = {name: jnp.pad(getattr(store, name), ((0, extra), (0, 0))) for name in "QZPH"}
    return replace(store, **stacks)


def directions(
    residual: Float[Array, "b n"], scale: Float[Array, " b"], tolerance: float
) -> tuple[Float[Array, "b n"], Bool[Array, " b"]]:
    """Rank-revealing orthonormal basis of the rows of ``residual``.

    Rows are compared with ``scale`` (the root-mean-square of the row each comes from), so that
    rows of very different norm count alike. Column-pivoted QR orders the new directions by
    weight; those below ``tolerance`` (in second moment) are returned as zero rows.

    Returns: basis ``(B, n)`` with the kept rows first, and the mask ``(B,)`` of kept rows.
    """
    count, size = residual.shape
    relative = residual / jnp.where(scale > 0, scale, 1)[:, None]
    # Pivoting on the small triangle: the tall factorisation without it is twenty times faster.
    tall, triangle = jnp.linalg.qr(relative.T)
    # Normalised rows are tied: earlier ones go first by a margin, not by round-off.
    margin = 1 - 0.1 * jnp.arange(count, dtype=residual.dtype) / count
    small, r, _ = jax.scipy.linalg.qr(triangle * margin, mode="economic", pivoting=True)
    q = tall @ small
    weight = jnp.abs(jnp.diagonal(r)) / jnp.sqrt(jnp.asarray(size, residual.dtype))
    # Pivoted weights decrease; cumprod guards against round-off in their order.
    kept = jnp.cumprod(weight * weight > tolerance).astype(bool)
    basis = jnp.where(kept[:, None], q.T * jnp.sqrt(jnp.asarray(size, residual.dtype)), 0)
    missing = count - basis.shape[0]
    return jnp.pad(basis, ((0, missing), (0, 0))), jnp.pad(kept, (0, missing))


class NoiseRows(NamedTuple):
    """A stack of earlier noise rows of a space: ``(C, M)``, of which ``used`` are not zero."""

    rows: Float[Array, "c m"]
    used: Int[Array, ""]


def query(
    store: Store, x: Float[Array, "b n_in"], law: Law, earlier: Sequence[NoiseRows] = ()
) -> Answer:
    """``G x / sqrt(n_in)`` for the rows of ``x`` ``(B, n_in)``, remembering what it revealed.

    Args:
        earlier: noise rows of the output space besides this store's own (other stores' and
            initial vectors'), used for moment matching only.

    The caller guarantees ``r + B <= C``. Transposed queries: ``query(store.T, y, ...)``.
    """
    count, n_in = x.shape
    n_out = store.Z.shape[1]
    c = noise.inner(x, store.Q)
    perp = x - c @ store.Q
    again = noise.inner(perp, store.Q)
    perp, c = perp - again @ store.Q, c + again
    b = noise.inner(x, store.H) * jnp.sqrt(jnp.asarray(n_in / n_out, x.dtype))

    scale = jnp.sqrt(jnp.mean(x * x, axis=1))
    q_new, kept = directions(perp, scale, law.tolerance)
    R = noise.inner(perp, q_new)
    z_new = _fresh(store, count, kept, law, earlier)

    image = c @ store.Z + b @ store.P + R @ z_new
    start = (store.r, jnp.zeros_like(store.r))
    revealed = replace(
        store,
        Q=lax.dynamic_update_slice(store.Q, q_new, start),
        Z=lax.dynamic_update_slice(store.Z, z_new, start),
        r=store.r + jnp.sum(kept, dtype=store.r.dtype),
    )
    coordinates = lax.dynamic_update_slice(c, R, (jnp.zeros_like(store.r), store.r))
    return Answer(image, revealed, coordinates)


def _fresh(
    store: Store, count: int, kept: Bool[Array, " b"], law: Law, earlier: Sequence[NoiseRows]
) -> Float[Array, "b n_out"]:
    size = store.Z.shape[1]
    z = noise.draw(store.key_Z, store.r, count, size, store.Z.dtype, law.kind)
    if law.exact:
        return jnp.where(kept[:, None], noise.remove(z, store.P), 0)
    stacks = [store.Z, *(stack.rows for stack in earlier)]
    used = store.t + store.r + sum((stack.used for stack in earlier), jnp.zeros_like(store.t))
    return noise.match(z, kept, store.P, stacks, used)


def core_product(
    core: Float[Array, "c c"],
    store: Store,
    x: Float[Array, "b n_in"],
    coordinates: Float[Array, "b c"] | None = None,
) -> Float[Array, "b n_out"]:
    """``(P^T K Q) x / n_in`` for rows ``x``: a trained update kept as a core ``K``.

    ``coordinates``, where a query of the same rows has them already, may include directions newer
    than those of ``K``: all of these are orthogonal to ``K``'s.
    """
    c = noise.inner(x, store.Q) if coordinates is None else coordinates
    return (c @ core.T) @ store.P
