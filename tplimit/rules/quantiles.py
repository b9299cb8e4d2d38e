"""Quantiles along a width: those of the limiting law of a coordinate."""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import CancellationError, NoLimitError
from tplimit.gaussian import sampling
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.known import quantile_p
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, HALF, NEVER, ORDER_ONE, Exponents
from tplimit.values.tensors import Tensor, leading_term, tensor

#: Half the width, in standard errors of the level, of the window of particles that is looked at.
_WINDOW = 3.0
#: How often the spacings of a continuous law are taken for a jump.
_FALSE_ALARM = 1e-6


@RULES(quantile_p)
def quantile(ctx: Context, value: Tensor, level: Tensor, axis: int, method: str) -> Tensor:
    """Quantile of the limiting law; refused where that jumps. Networks fluctuate by n^(-1/2).

    Its error is that of the share of particles below it over the density there (R. R. Bahadur, A
    Note on Quantiles in Large Samples, 1966), which is read off between the particles that are
    ``3 sqrt(q (1 - q) / M)`` of the level below and above. Inside an atom there is none.
    """
    assert value.axis == axis
    value = leading_term(patches.remainder_everywhere(value))
    level = leading_term(level)
    exponents, remainder = (_across(e, axis, level) for e in (value.exponents, value.remainder))
    if value.exponents == EXACT_ZERO:
        shape = (*level.shape, *(d for i, d in enumerate(value.shape) if i != axis))
        return tensor(np.zeros(shape, value.dtype), EXACT_ZERO, remainder)
    if ctx.exact:
        out = jnp.quantile(value.coefficient, level.coefficient, axis, method=method)
        return tensor(out, exponents, remainder)
    _refuse_extremes(ctx, level)
    found = _quantiles(jnp.moveaxis(jnp.asarray(value.coefficient), axis, -1), level, value.dtype)
    ctx.check(jnp.all(found.enough), _too_few(ctx))
    ctx.check(jnp.all(found.continuous), _jump(ctx))
    stderr = found.error
    if value.stderr is not None:
        errors = jnp.broadcast_to(value.stderr, value.shape)
        beside = jnp.max(errors, axis)
        stderr = stderr + beside
    # What is unknown of the level moves the quantile by as much.
    remainder = remainder.maximum(exponents + -HALF, exponents + level.remainder.max())
    return tensor(found.value, exponents, remainder, stderr=stderr)


quantile.several(quantile)


class _Quantiles(NamedTuple):
    """Quantiles, their sampling errors, whether enough particles are beyond, and no jump there."""

    value: Any
    error: Any
    enough: Any
    continuous: Any


def _quantiles(c: Any, level: Tensor, dtype: Any) -> _Quantiles:
    """Of particles along the last axis, for every level: leading axes are those of the levels."""
    count = c.shape[-1]
    ordered = jnp.sort(c.astype(jnp.result_type(c, float)), axis=-1)
    spacings = jnp.diff(ordered, axis=-1)

    def at(share: Any) -> Any:
        """Between two particles, linearly."""
        place = jnp.clip(share, 0, 1) * (count - 1)
        low = jnp.floor(place).astype(int)
        part = (place - low).astype(ordered.dtype)
        a, b = (ordered[..., jnp.minimum(k, count - 1)] for k in (low, low + 1))
        return a + part * (b - a)

    def one(given: tuple[Any, Any]) -> _Quantiles:
        q, spread = given
        sigma = jnp.sqrt(jnp.maximum(q * (1 - q), 0) / count) + spread
        low, high = q - _WINDOW * sigma, q + _WINDOW * sigma
        width = at(high) - at(low)
        places = jnp.arange(count - 1)
        window = (places >= jnp.floor(low * (count - 1))) & (places < jnp.ceil(high * (count - 1)))
        inside = jnp.where(window, spacings, 0)
        # Equal particles are one atom, with no spacing between them.
        number = jnp.sum(inside > 0, -1)
        largest = _largest_share(number)
        continuous = (width == 0) | (jnp.max(inside, -1) <= largest * width)
        enough = jnp.broadcast_to((low > 0) & (high < 1), continuous.shape)
        found = at(q)
        below = (c <= found[..., None]).astype(ordered.dtype)
        error = jnp.hypot(sampling.error_of_mean(below, c.ndim - 1), spread)
        return _Quantiles(found, error * width / (high - low), enough, continuous)

    q = jnp.asarray(level.coefficient, ordered.dtype)
    spread = 0 * q if level.stderr is None else jnp.asarray(level.stderr, ordered.dtype)
    found = jax.lax.map(one, (q.ravel(), spread.ravel()))
    found = _Quantiles(*(a.reshape(*q.shape, *a.shape[1:]) for a in found))
    return found._replace(value=found.value.astype(dtype), error=found.error.astype(dtype))


def _largest_share(number: Any) -> Any:
    """What the largest of so many spacings of a density takes of their sum, but for false alarms:
    of k uniform ones it exceeds a share s with a probability of at most k (1 - s)^(k-1)."""
    k = jnp.maximum(number, 2).astype(float)
    share = 1 - (_FALSE_ALARM / k) ** (1 / (k - 1))
    return jnp.where(number > 1, share, 0)


def _across(exponents: Exponents, axis: int, level: Tensor) -> Exponents:
    """Exponents without the width axis, for every level the same."""
    if exponents.uniform:
        return exponents
    return Exponents(np.take(exponents.array, 0, axis=axis))


def _refuse_extremes(ctx: Context, level: Tensor) -> None:
    if level.exponents != ORDER_ONE or level.remainder.max() >= 0:
        known = level.constant
        if known is None or not set(level.exponents.levels()) <= {Fraction(0), NEVER}:
            ctx.fail("The level of a quantile is not known to be of order 1.", NoLimitError)
    q = level.coefficient
    error = ctx.error(
        "A quantile at level 0 or 1 is the most extreme coordinate, which has no limit.",
        NoLimitError,
        "Take a level between 0 and 1, such as 0.01 or 0.99.",
    )
    ctx.check((q > 0) & (q < 1), error)


def _too_few(ctx: Context) -> Any:
    return ctx.error(
        "Too few particles are beyond a quantile to tell how well it is known.",
        CancellationError,
        "Use more samples, or a level that is farther from 0 and 1.",
    )


def _jump(ctx: Context) -> Any:
    return ctx.error(
        "The law of a coordinate has a gap at this quantile, within the sampling error of its "
        "level: at a jump there is no limit, and a density beside it is not known.",
        NoLimitError,
        "Take another level; of a law with atoms, such as that of signs, count shares instead: "
        "jnp.mean(x <= 0).",
    )
