"""Noise rows and the moment matching of the limit.

A *row* is one standard normal per coordinate of a width axis, shape ``(M,)``. Averages over a
width are written ``<a, b> = mean(a * b)``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

#: Matching stops (a row stays unmatched) once this share of the particles is used up by rows.
MATCHING_SHARE = 0.5


class NoiseRows(NamedTuple):
    """Earlier noise rows of a space: the rows of a stack ``(C, M)`` that are marked in ``kept``."""

    rows: Float[Array, "c m"]
    kept: Bool[Array, " c"]


_ITERATIONS = 25

#: Inner products of long rows are summed over pieces of this length.
_PIECE = 8192

_divided: ContextVar[bool] = ContextVar("divided", default=False)


@contextmanager
def divided(between_devices: bool) -> Iterator[None]:
    """Whether rows are divided between devices in what is traced inside.

    Each device then sums over its own share; a loop over pieces would move them all.
    """
    token = _divided.set(between_devices)
    try:
        yield
    finally:
        _divided.reset(token)


def inner(a: Float[Array, "r m"], b: Float[Array, "s m"]) -> Float[Array, "r s"]:
    """``<a, b> = mean(a b)`` of all pairs of rows: ``(r, M), (s, M) -> (r, s)``."""
    size = a.shape[-1]
    # The stack first: on CPUs this order of the product is three times faster.
    if size < 4 * _PIECE or _divided.get():
        return (b @ a.T).T / size

    # Matrix products of CPUs are slow in long contractions: up to seven times at M = 2^18.
    def add(i: Int[Array, ""], total: Float[Array, "s r"]) -> Float[Array, "s r"]:
        x, y = (lax.dynamic_slice_in_dim(rows, i * _PIECE, _PIECE, axis=1) for rows in (a, b))
        return total + y @ x.T

    whole = size // _PIECE
    total = lax.fori_loop(0, whole, add, jnp.zeros((len(b), len(a)), jnp.result_type(a, b)))
    if size % _PIECE:
        total = total + b[:, whole * _PIECE :] @ a[:, whole * _PIECE :].T
    return total.T / size


def orthonormalise(z: Float[Array, "b m"], keep: Bool[Array, " b"]) -> Float[Array, "b m"]:
    """Symmetric orthonormalisation ``(<z, z>)^(-1/2) z`` of the rows marked in ``keep``.

    Rows not kept come back as zeros. The symmetric root changes the rows least and favours none.
    """
    z = jnp.where(keep[:, None], z, 0)
    identity = jnp.eye(z.shape[0], dtype=z.dtype)
    gram = jnp.where(keep[:, None] & keep[None, :], inner(z, z), identity)
    return _inverse_root(gram) @ z


def _inverse_root(gram: Float[Array, "b b"]) -> Float[Array, "b b"]:
    """``gram^(-1/2)`` by the Newton-Schulz iteration, matrix products only.

    An eigenvalue below 1e-7 of the largest is not inverted to the end: rows that a projection has
    annihilated cannot be restored, and stay small.
    """
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    # An upper bound of the largest eigenvalue.
    size = jnp.max(jnp.sum(jnp.abs(gram), axis=1))
    enough = 4 * float(jnp.finfo(gram.dtype).eps) * gram.shape[0]

    State = tuple[Array, Array, Array, Array]

    def unfinished(state: State) -> Bool[Array, ""]:
        step, _, _, change = state
        return (step < _ITERATIONS) & (jnp.max(jnp.abs(change - eye)) > enough)

    def improve(state: State) -> State:
        step, root, inverse, change = state
        root, inverse = root @ change, change @ inverse
        return step + 1, root, inverse, 1.5 * eye - 0.5 * inverse @ root

    start = gram / size
    first = (jnp.asarray(0), start, eye, 1.5 * eye - 0.5 * start)
    return lax.while_loop(unfinished, improve, first)[2] / jnp.sqrt(size)


def centred(z: Float[Array, "b m"], noise_rows: Sequence[NoiseRows]) -> Float[Array, "b m"]:
    """``z`` without its means and its components on earlier noise rows."""
    z = z - jnp.mean(z, axis=1, keepdims=True)
    overlap = [(inner(z, stack.rows) * stack.kept) @ stack.rows for stack in noise_rows]
    return z - sum(overlap, jnp.zeros_like(z))


def has_room(used: Int[Array, ""], size: int) -> Bool[Array, ""]:
    """Whether ``used`` matched rows leave enough freedom among ``size`` particles."""
    return used <= MATCHING_SHARE * size


def matched(rows: Float[Array, "count size"]) -> Float[Array, "count size"]:
    """Noise rows made zero-mean and orthonormal, where their length leaves room for it."""
    count, size = rows.shape
    if count + 1 > MATCHING_SHARE * size:
        return rows
    return orthonormalise(centred(rows, ()), jnp.ones((count,), bool))
