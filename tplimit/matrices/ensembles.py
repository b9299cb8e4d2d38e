"""Numbers with others beside them, as they would be if their sources were off by their errors.

The first of an ensemble ``(1 + D, ...)`` is the value itself. The others are off by one standard
error at a time: averages as groups of particles have them, factors by random signs. They go
through the same operations, so that what cancels in these, or is damped, does so in the error too,
which is the root mean square of what is left between them and the first: the jackknife of groups.
First-order errors without signs (``algebra/arithmetic.py``) would be far too wide for polynomials.

At a finite width nothing has an error, and ``D`` is 0.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tplimit.gaussian import noise
from tplimit.gaussian.sampling import GROUPS, deviations_of_inner
from tplimit.interpreter.context import Context


def factors(
    ctx: Context, share: Any, source: Sequence[Any], shape: tuple[int, ...], dtype: Any
) -> Any:
    """Numbers 1 that are off, each for itself, by a relative error (None: by nothing).

    The same source, arrays as objects, has the same signs wherever it enters: what becomes of
    ``3 x - 2 x`` is that of ``x``.
    """
    if ctx.exact or share is None:
        return jnp.ones((1 if ctx.exact else 1 + GROUPS, *shape), dtype)
    key = jax.random.key(ctx.ledger.number(source, shape))
    # As many of either sign: what is hidden is nothing in half of the ensemble.
    halves = jnp.where(jnp.arange(GROUPS) % 2 == 0, 1, -1).astype(dtype)
    each = jnp.broadcast_to(halves.reshape(-1, *[1] * len(shape)), (GROUPS, *shape))
    signs = jax.random.permutation(key, each, independent=True)
    return 1 + share * jnp.concatenate([jnp.zeros((1, *shape), dtype), signs])


def averages(ctx: Context, a: Sequence[Any], b: Sequence[Any]) -> Float[Array, "d r s"]:
    """``<a, b>`` of all rows of some blocks with all of others."""
    return jnp.concatenate([jnp.concatenate([_averages(ctx, x, y) for y in b], 2) for x in a], 1)


def _averages(ctx: Context, x: Any, y: Any) -> Any:
    def of() -> Any:
        mean = noise.inner(x, y)[None]
        return mean if ctx.exact else jnp.concatenate([mean, mean + deviations_of_inner(x, y)])

    return ctx.ledger.once("averages", (x, y), of)


def error(ensemble: Float[Array, "d ..."]) -> Any:
    """Standard error of numbers, None if they have none."""
    if len(ensemble) == 1:
        return None
    return jnp.sqrt(jnp.mean(jnp.square(ensemble[1:] - ensemble[:1]), 0))


__all__ = ["averages", "error", "factors"]
