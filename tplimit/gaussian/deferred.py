"""Deferred Gaussian matrices: revealed as they are queried, never formed.

``G`` is an ``n_out x n_in`` matrix with independent ``N(0, 1)`` entries. A store keeps a list of
pairs of rows, ``X_i`` on the input axis and ``Y_i`` on the output axis. With
``<a, b> = mean(a b)`` over a width axis, the pair is

* *forward*: ``X_i = Q_i`` is an input direction already revealed (these are orthonormal), and
  ``Y_i = Z_i`` the fresh part of its image under ``G / sqrt(n_in)``;
* *transposed*: ``Y_i = P_i`` is an output direction already revealed (orthonormal), and
  ``X_i = H_i`` the fresh part of its image under ``G^T / sqrt(n_out)``.

A query ``G x / sqrt(n_in)`` for a block of rows ``x`` is, with the sums over pairs of each kind::

    c = <Q, x>      b = sqrt(n_in / n_out) <H, x>      x_perp = x - Q^T c = Q_new^T R
    G x / sqrt(n_in) = Z^T c + P^T b + Z_new^T R

so that one product with ``X`` gives all coefficients and one with ``Y`` the image. The transposed
query is the same with the axes and the kinds exchanged. The term ``P^T b`` is the correction
``Z-dot`` of the Tensor Program (Stein's lemma: ``<H, x>`` estimates the expected derivative). With
arrays of true width this is exactly a dense Gaussian matrix in law; with arrays of ``M`` particles
it is its infinite-width limit.

The list has a fixed capacity ``C``; rows beyond the count are zero and of neither kind.

An *orthogonal* matrix, uniformly distributed (Haar), is deferred alike, ``G / sqrt(n)`` being that
matrix: inner products are kept, so that pairs are orthonormal on both axes, and each is known in
both directions, ``X_i <-> Y_i``. Then ``b`` is nothing, ``c = <X, x>`` runs over all pairs, and
fresh rows are orthogonal to all of ``Y``: what is left of a Haar matrix of which some pairs are
known is one between their complements.

Of a network of width ``n`` the particles are the limit. Averages over its ``n`` coordinates differ
from those over the particles by ``n^(-1/2) G[a, b]``, ``G[a, b] = M^(-1/2) sum(multiplier a b)``
(the same multipliers for all averages over an axis). So its directions and fresh rows differ too:
``Q`` is orthonormal, and fresh rows are orthogonal to earlier directions, for these averages. The
change is linear in ``Q`` on the input axis and in ``P`` on the output axis, and the image changes
by ``n^(-1/2) Y^T e``, with ``a = c + b`` the coefficients on all pairs::

    e = <multiplier X, x> sqrt(M) + a gamma
    gamma = -G[X, X]    of forward pairs with later ones, by half among the pairs of one query
    gamma = -G[Y, Y]    of later pairs with transposed ones

and of orthogonal matrices both for all pairs, by half among the pairs of one query.

Source: the conditioning argument of Yang, *Tensor Programs III* (arXiv 2009.10685), appendix on
the Master Theorem, used constructively.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from tplimit.caching.pieces import apart
from tplimit.gaussian import noise
from tplimit.gaussian.basis import directions
from tplimit.gaussian.kinds import Stream
from tplimit.gaussian.noise import NoiseRows
from tplimit.values.fields import ALONG, FINITE, STATIC

#: Alternating projections: enough because only variance, never the law, depends on convergence.
_SWEEPS = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Store:
    """What has been revealed of one matrix (see the module's text).

    Attributes:
        X, Y: the pairs of rows.
        forward, transposed: the kind of each pair.
        overlap: ``<noise row of pair i, direction of pair j>`` for ``i`` and ``j`` of different
            kind, both on the axis where ``i`` is noise.
        count: pairs in use.
        key_X, key_Y: name the noise drawn on each axis.
        gamma: change of the image at finite width (see the module's text), or None.
        orthogonal: whether the matrix is orthogonal, not Gaussian.
    """

    X: Float[Array, "c n_in"] = field(metadata=ALONG)
    Y: Float[Array, "c n_out"] = field(metadata=ALONG)
    forward: Bool[Array, " c"] = field(metadata=FINITE)
    transposed: Bool[Array, " c"] = field(metadata=FINITE)
    overlap: Float[Array, "c c"] = field(metadata=FINITE)
    count: Int[Array, ""] = field(metadata=FINITE)
    key_X: Key[Array, ""] = field(metadata=FINITE)
    key_Y: Key[Array, ""] = field(metadata=FINITE)
    gamma: Float[Array, "c c"] | None = field(default=None, metadata=FINITE)
    orthogonal: bool = field(default=False, metadata=STATIC)

    @property
    def T(self) -> "Store":
        """The store of the transposed matrix: the same pairs with the roles exchanged."""
        return replace(
            self, X=self.Y, Y=self.X, forward=self.transposed, transposed=self.forward,
            key_X=self.key_Y, key_Y=self.key_X, gamma=self._gamma_transposed(),
        )  # fmt: skip

    def _gamma_transposed(self) -> Float[Array, "c c"] | None:
        if self.gamma is None:
            return None
        mixed = self.forward[..., :, None] & self.transposed[..., None, :]
        return jnp.swapaxes(jnp.where(mixed, self.gamma / self.ratio, self.gamma), -1, -2)

    @property
    def ratio(self) -> float:
        """Square root of the ratio of the widths, input to output."""
        return float(self.X.shape[-1] / self.Y.shape[-1]) ** 0.5

    @property
    def capacity(self) -> int:
        return int(self.X.shape[-2])

    @property
    def directions(self) -> Bool[Array, " c"]:
        """The pairs whose ``X_i`` are orthonormal directions, of which the image is ``Y_i``."""
        return self.forward | self.transposed if self.orthogonal else self.forward

    @property
    def rank(self) -> Int[Array, ""]:
        """Number of input directions that have been revealed."""
        return jnp.sum(self.directions, dtype=self.count.dtype)

    @property
    def noise(self) -> NoiseRows:
        """The noise rows of the output axis."""
        return NoiseRows(self.Y, self.forward)


class Law(NamedTuple):
    """How fresh rows are drawn: at finite width exact in law, in the limit moment-matched.

    ``tolerance``: a new direction is dropped when its second moment is below ``tolerance`` times
    that of the row it comes from.
    """

    exact: bool
    tolerance: float
    kind: str = "random"


class Answer(NamedTuple):
    """Images of a block of rows, the store that remembers the query, coordinates of the rows."""

    image: Float[Array, "b n_out"]  # G x / sqrt(n_in)
    updates: list[Float[Array, "b n_out"]]  # (P^T K Q) x / n_in for each core K
    store: Store
    coordinates: Float[Array, "b c"]  # <Q, x>, the new directions included
    # Changes of image and updates at finite width, over n^(-1/2); empty without multipliers.
    fluctuations: list[Float[Array, "b n_out"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Multipliers:
    """Standard normals of zero sum that weight the coordinates in central-limit terms.

    ``size``: coordinates per common width ``n``.
    """

    input: Float[Array, " n_in"]
    output: Float[Array, " n_out"]
    size: int = field(metadata={"static": True})

    def inner(
        self, weights: Float[Array, " m"], a: Float[Array, "r m"], b: Float[Array, "s m"]
    ) -> Float[Array, "r s"]:
        """``G[a, b]`` of all pairs of rows."""
        return noise.inner(a * weights, b) * jnp.asarray(self.size**0.5, a.dtype)


def empty_store(
    key: Key[Array, ""],
    n_out: int,
    n_in: int,
    capacity: int,
    dtype: jnp.dtype,
    fluctuating: bool = False,
    orthogonal: bool = False,
) -> Store:
    """A matrix of which nothing has been revealed yet."""
    key_Y, key_X = jax.random.split(key)
    none = jnp.zeros((capacity,), bool)
    return Store(
        X=jnp.zeros((capacity, n_in), dtype),
        Y=jnp.zeros((capacity, n_out), dtype),
        forward=none,
        transposed=none,
        overlap=jnp.zeros((capacity, capacity), dtype),
        count=jnp.zeros((), jnp.int32),
        key_X=key_X,
        key_Y=key_Y,
        gamma=jnp.zeros((capacity, capacity), dtype) if fluctuating else None,
        orthogonal=orthogonal,
    )


def grown(store: Store, capacity: int) -> Store:
    """The same store with room for ``capacity`` pairs; leading axes (replicates) stay."""
    extra = capacity - store.capacity
    if extra <= 0:
        return store

    def pad(stack: Array, *widths: int) -> Array:
        left = stack.ndim - len(widths)
        return jnp.pad(stack, [(0, 0)] * left + [(0, width) for width in widths])

    return replace(
        store,
        X=pad(store.X, extra, 0),
        Y=pad(store.Y, extra, 0),
        forward=pad(store.forward, extra),
        transposed=pad(store.transposed, extra),
        overlap=pad(store.overlap, extra, extra),
        gamma=None if store.gamma is None else pad(store.gamma, extra, extra),
    )


def query(
    store: Store,
    x: Float[Array, "b n_in"],
    law: Law,
    earlier: Sequence[NoiseRows] = (),
    *,
    stream: Stream | None = None,
    cores: Sequence[Float[Array, "c c"]] = (),
    multipliers: Multipliers | None = None,
    unmet: Bool[Array, " b"] | None = None,
) -> Answer:
    """``G x / sqrt(n_in)`` for the rows of ``x`` ``(B, n_in)``, remembering what it revealed.

    Args:
        earlier: noise rows of the output space besides this store's own (other stores' and
            initial vectors'), used for moment matching only.
        stream: the noise of the output axis; default: pseudo-random, named by the store.
        cores: trained updates of the matrix, applied in the same pass (see ``core_product``).
        multipliers: of the two axes, if the changes at finite width are asked for.
        unmet: rows that are orthogonal to what the transposed matrix has given by symmetry,
            whatever the particles say.

    The caller guarantees ``count + B <= C``. Transposed queries: ``query(store.T, y, ...)``.

    Each of ``X`` and ``Y`` is read as few times as the dependence of the steps allows: ``X`` for
    the coefficients, for the residual and once more for both to keep the basis orthonormal; ``Y``
    for the overlap of the fresh rows with it, and for their correction with all images at once.
    """
    found = apart(_found, store, x, unmet, tolerance=law.tolerance)
    stream = Stream(store.key_Y) if stream is None else stream
    z = stream.rows(store.count, x.shape[0], store.Y.shape[1], store.Y.dtype)
    room = jnp.asarray(False)
    if not law.exact:
        room, z = apart(_centred, store.count, z, earlier)
    image, updates, z = apart(_answered, store, found, z, room, list(cores), exact=law.exact)
    after = apart(_appended, store, found, z)
    place = jnp.zeros_like(store.count)
    coordinates = lax.dynamic_update_slice(found.c, found.R, (place, store.count))
    fluctuations = []
    if multipliers is not None:
        gamma = apart(_gamma, store, found.q, z, multipliers)
        after = replace(after, gamma=gamma)
        fluctuations = apart(_changes, after, x, coordinates + found.b, cores, multipliers)
    return Answer(image, updates, after, coordinates, fluctuations)


class _Found(NamedTuple):
    """What is found out about the rows of a query (see the module's text)."""

    c: Float[Array, "b c"]
    b: Float[Array, "b c"]
    q: Float[Array, "b n_in"]  # the new directions
    kept: Bool[Array, " b"]  # which of them there are
    met: Float[Array, "b c"]  # the components of H on them
    R: Float[Array, "b b"]


def _found(
    store: Store, x: Float[Array, "b n_in"], unmet: Bool[Array, " b"] | None, *, tolerance: float
) -> _Found:
    known = noise.inner(x, store.X)
    if unmet is not None:
        known = jnp.where(unmet[:, None] & store.transposed, 0, known)
    c = known * store.directions
    b = (known - c) * store.transposed * jnp.asarray(store.ratio, x.dtype)
    residual = x - c @ store.X
    scale = jnp.sqrt(jnp.mean(x * x, axis=1))
    basis, kept = directions(residual, scale, tolerance)
    # Rows made from small residuals are orthogonal to Q only after a second projection.
    met = noise.inner(basis, store.X)
    q = noise.orthonormalise(basis - (met * store.directions) @ store.X, kept)
    return _Found(c, b, q, kept, met * store.transposed, noise.inner(residual, q))


def _centred(
    count: Int[Array, ""], z: Float[Array, "b n_out"], earlier: Sequence[NoiseRows]
) -> tuple[Bool[Array, ""], Float[Array, "b n_out"]]:
    """Whether there is room for matching, and the rows matched to those of other matrices."""
    used = count + z.shape[0] + sum((jnp.sum(s.kept) for s in earlier), jnp.zeros((), int))
    room = noise.has_room(used, z.shape[1])
    return room, jnp.where(room, noise.centred(z, earlier), z)


def _answered(
    store: Store,
    found: _Found,
    z: Float[Array, "b n_out"],
    room: Bool[Array, ""],
    cores: Sequence[Float[Array, "c c"]],
    *,
    exact: bool,
) -> tuple[Float[Array, "b n_out"], list[Float[Array, "b n_out"]], Float[Array, "b n_out"]]:
    """Images of the rows, also under the cores, and ``Z_new``, made of the rows ``z``."""
    spent = _components(store, z, room)
    fresh, image, *updates = jnp.split(
        jnp.concatenate([-spent, found.c + found.b, *(found.c @ core.T for core in cores)])
        @ store.Y,
        2 + len(cores),
    )
    z = jnp.where(found.kept[:, None], z + fresh, 0)
    if store.orthogonal:
        z = noise.orthonormalise(z, found.kept)
    elif not exact:
        z = jnp.where(room, noise.orthonormalise(z, found.kept), z)
    return image + found.R @ z, updates, z


def _changes(
    after: Store,
    x: Float[Array, "b n_in"],
    coefficients: Float[Array, "b c"],
    cores: Sequence[Float[Array, "c c"]],
    multipliers: Multipliers,
) -> list[Float[Array, "b n_out"]]:
    """Changes of the image, and of those under the cores, at finite width."""
    assert after.gamma is not None
    met = multipliers.inner(multipliers.input, x, after.X)
    weights = jnp.where(after.transposed, jnp.asarray(after.ratio, x.dtype), 1)
    change = met * weights + coefficients @ after.gamma
    some = [met * after.directions @ core.T for core in cores]
    return jnp.split(jnp.concatenate([change, *some]) @ after.Y, 1 + len(cores))


def _gamma(
    store: Store,
    q: Float[Array, "b n_in"],
    z: Float[Array, "b n_out"],
    multipliers: Multipliers,
) -> Float[Array, "c c"]:
    """``gamma`` with the entries of the new forward pairs ``(q, z)``."""
    assert store.gamma is not None
    place, zero = store.count, jnp.zeros_like(store.count)
    earlier = -multipliers.inner(multipliers.input, store.X, q) * store.directions[:, None]
    met = -multipliers.inner(multipliers.output, z, store.Y) * store.T.directions
    own = -multipliers.inner(multipliers.input, q, q) / 2
    if store.orthogonal:
        own = own - multipliers.inner(multipliers.output, z, z) / 2
    gamma = lax.dynamic_update_slice(store.gamma, met, (place, zero))
    # Columns of the pairs before; what is below them has just been written, and is zero there.
    columns = lax.dynamic_update_slice(earlier, own, (place, zero))
    return lax.dynamic_update_slice(gamma, columns, (zero, place))


def _components(
    store: Store, z: Float[Array, "b n_out"], matched: Bool[Array, ""]
) -> Float[Array, "b c"]:
    """Coefficients on ``Y`` of what fresh rows must lose: all components on ``P``, and on ``Z``
    too where rows are ``matched``.

    ``P`` and ``Z`` are each orthonormal and their overlap is known, so that the alternating
    projections on the two are small matrix products. The last one is on ``P``.
    """
    on = noise.inner(z, store.Y)
    if store.orthogonal:
        return on
    on_Z = jnp.where(matched, on * store.forward, 0)
    on_P = on * store.transposed

    def sweep(_: Int[Array, ""], a: Float[Array, "b c"]) -> Float[Array, "b c"]:
        return on_Z - jnp.where(matched, (on_P - a @ store.overlap) @ store.overlap.T, 0)

    on_Z = lax.fori_loop(0, _SWEEPS, sweep, on_Z)
    return on_Z + (on_P - on_Z @ store.overlap)


def _appended(store: Store, found: _Found, z: Float[Array, "b n_out"]) -> Store:
    """The store with the forward pairs that a query has found."""
    place, zero = store.count, jnp.zeros_like(store.count)

    def put(stack: Array, block: Array, *start: Array) -> Array:
        return lax.dynamic_update_slice(stack, block.astype(stack.dtype), start)

    return replace(
        store,
        X=put(store.X, found.q, place, zero),
        Y=put(store.Y, z, place, zero),
        forward=put(store.forward, found.kept, place),
        overlap=put(store.overlap, found.met.T, zero, place),
        count=place + jnp.sum(found.kept, dtype=place.dtype),
    )


def core_product(
    core: Float[Array, "c c"],
    store: Store,
    x: Float[Array, "b n_in"],
    coordinates: Float[Array, "b c"] | None = None,
) -> Float[Array, "b n_out"]:
    """``(P^T K Q) x / n_in`` for rows ``x``: a trained update kept as a core ``K``.

    Row ``i``, column ``j`` of ``K`` belong to the transposed pair ``i`` and the forward pair ``j``;
    all other entries are zero. ``coordinates``, where a query of the same rows has them already,
    may include directions newer than those of ``K``.
    """
    c = noise.inner(x, store.X) * store.directions if coordinates is None else coordinates
    return (c @ core.T) @ store.Y
