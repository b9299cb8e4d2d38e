"""Rank-revealing orthonormal bases of a few long rows.

Only inner products of rows are used, ``(B, M) -> (B, B)``: one pass over the rows, the same work
for any number of devices that share the long axis.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from tplimit.gaussian.noise import inner, orthonormalise

#: Gram matrices resolve second moments down to this many units of round-off.
_RESOLVED = 50


def directions(
    residual: Float[Array, "b n"], scale: Float[Array, " b"], tolerance: float
) -> tuple[Float[Array, "b n"], Bool[Array, " b"]]:
    """Rank-revealing basis of the rows of ``residual``.

    Rows are compared with ``scale`` (the root-mean-square of the row each comes from), so that
    rows of very different norm count alike. Directions are ordered by weight; those below
    ``tolerance`` (in second moment) are returned as zero rows.

    The Gram matrix forgets what is below round-off relative to a row. Where ``tolerance`` asks for
    more, what the first basis leaves of every row is formed and searched again.

    Returns: basis ``(B, n)``, orthonormal up to the round-off of the smallest kept weight, with the
    kept rows first, and the mask ``(B,)`` of kept rows.
    """
    relative = residual / jnp.where(scale > 0, scale, 1)[:, None]
    resolved = _RESOLVED * float(jnp.finfo(residual.dtype).eps)
    change, kept = _pivoted(inner(relative, relative), max(tolerance, resolved))
    basis = change @ relative
    if tolerance >= resolved:
        return basis, kept
    basis = orthonormalise(basis, kept)
    left = relative - inner(relative, basis) @ basis
    left = left - inner(left, basis) @ basis
    change, more = _pivoted(inner(left, left), tolerance)
    second = _normalised(change @ left)
    # The two bases one after the other, zero rows last.
    count = residual.shape[0]
    joint = jnp.concatenate([basis, jnp.zeros_like(basis)])
    joint = lax.dynamic_update_slice(joint, second, (jnp.sum(kept), 0))[:count]
    return joint, jnp.arange(count) < jnp.sum(kept) + jnp.sum(more)


def _normalised(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Rows of unit second moment; zero rows stay."""
    size = jnp.sqrt(jnp.mean(rows * rows, axis=1, keepdims=True))
    return rows / jnp.where(size > 0, size, 1)


def _pivoted(
    gram: Float[Array, "b b"], tolerance: float
) -> tuple[Float[Array, "b b"], Bool[Array, " b"]]:
    """Gram-Schmidt on a Gram matrix, the row of largest remaining weight first.

    Returns: coefficients ``T`` such that the rows of ``T x`` are orthonormal, zero where the
    remaining weight is below ``tolerance``; and the mask of the others, which come first.
    """
    count = gram.shape[0]
    # Normalised rows are tied: earlier ones go first by a margin, not by round-off.
    margin = (1 - 0.1 * jnp.arange(count, dtype=gram.dtype) / count) ** 2

    def choose(step: Int[Array, ""], state: tuple[Array, ...]) -> tuple[Array, ...]:
        gram, left, chosen, kept, free = state  # `left`: what remains of each row
        weight = jnp.diagonal(gram)
        pivot = jnp.argmax(jnp.where(free, weight * margin, -1))
        # Weights decrease but for the margin: what is kept comes first.
        found = (weight[pivot] > tolerance) & (jnp.sum(kept) == step)
        size = jnp.sqrt(jnp.where(found, weight[pivot], 1))
        unit = jnp.where(found, left[pivot] / size, 0)
        share = jnp.where(found, gram[pivot] / size, 0)
        return (
            gram - share[:, None] * share[None, :],
            left - share[:, None] * unit[None, :],
            chosen.at[step].set(unit),
            kept.at[step].set(found),
            free.at[pivot].set(False),
        )

    eye = jnp.eye(count, dtype=gram.dtype)
    start = (gram, eye, jnp.zeros_like(eye), jnp.zeros(count, bool), jnp.ones(count, bool))
    _, _, chosen, kept, _ = lax.fori_loop(0, count, choose, start)
    return chosen, kept
