"""What runs along a finite axis: products, running sums and extrema, order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion, knowledge
from tplimit.errors import NoLimitError
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.rules.along import accumulated, joined, parts, side_by_side
from tplimit.rules.comparisons import larger
from tplimit.rules.discrete import flips
from tplimit.rules.reductions import not_told
from tplimit.values.exponents import NEVER, ORDER_ONE, Exponents
from tplimit.values.parity import EVEN
from tplimit.values.rearranging import rearranged, with_common_exponents
from tplimit.values.tensors import Tensor, leading_term, tensor, with_one_exponent, with_parity

#: Sorting compares about half the square of this many values.
_SORTED = 32


def _finite(ctx: Context, value: Tensor, *axes: int) -> None:
    """Refuse what runs along a width."""
    if value.axis in axes:
        ctx.fail(
            f"{ctx.equation.primitive.name} along a width: its coordinates are exchangeable and "
            "have no order.",
            NoLimitError,
        )


def _simple(value: Tensor) -> bool:
    """Whether the operation may act on the coefficients: one term, and one exponent (of finite
    arrays also entries that are exactly zero beside those of order 1)."""
    levels = set(value.exponents.levels())
    one = value.exponents.uniform or (value.finite and levels <= {0, NEVER})
    return one and not value.terms[1:] and not value.patches


@RULES(p.reduce_prod_p)
def product(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Product over finite axes: exponents add."""
    if value.axis in axes:
        ctx.fail("A product over a width: its logarithm grows with the width.", NoLimitError)
    for axis in sorted(axes, reverse=True):
        (value,) = joined((value,), axis, lambda a, b: (expansion.times(ctx, a[0], b[0]),))
    return value


product.several(product)


@RULES(p.cumsum_p)
def cumulative_sum(ctx: Context, value: Tensor, axis: int, reverse: bool) -> Tensor:
    """Running sum along a finite axis."""
    _finite(ctx, value, axis)
    if not value.exponents.uniform or not value.remainder.uniform:
        return accumulated(value, axis, reverse, lambda a, b: expansion.plus(ctx, a, b))
    return arithmetic.linear(value, ctx.rebind)


@RULES(p.cumprod_p)
def cumulative_product(ctx: Context, value: Tensor, axis: int, reverse: bool) -> Tensor:
    """Running product along a finite axis: exponents add."""
    _finite(ctx, value, axis)
    return accumulated(value, axis, reverse, lambda a, b: expansion.times(ctx, a, b))


@RULES(p.cummax_p, p.cummin_p)
def cumulative_extremum(ctx: Context, value: Tensor, axis: int, reverse: bool) -> Tensor:
    """Running maximum or minimum along a finite axis."""
    _finite(ctx, value, axis)
    side = 1 if ctx.equation.primitive is p.cummax_p else -1
    return accumulated(value, axis, reverse, lambda a, b: larger(ctx, a, b, side))


@RULES(p.sort_p)
def sort(
    ctx: Context, *values: Tensor, dimension: int, num_keys: int = 1, **_: Any
) -> list[Tensor]:
    """Order along a finite axis, of other arrays by the first one, too."""
    _finite(ctx, values[0], dimension)
    if num_keys > 1:
        ctx.fail("The order by several arrays is not supported along values of a width.")
    return [_ordered(ctx, values[0], dimension), *_by(ctx, values[0], values[1:], dimension)]


@RULES(p.top_k_p)
def top_k(ctx: Context, value: Tensor, k: int, axis: int = -1, **_: Any) -> list[Tensor]:
    """The largest entries along a finite axis, and their places."""
    axis %= len(value.shape)
    _finite(ctx, value, axis)
    places = np.arange(value.shape[axis], dtype=ctx.equation.out_avals[1].dtype)
    places = places.reshape([-1] + [1] * (len(value.shape) - axis - 1))
    place = with_parity(tensor(np.broadcast_to(places, value.shape)), EVEN)
    place = replace(place, axis=value.axis, space=value.space)
    below = expansion.negative(value)
    (first,) = parts((_ordered(ctx, below, axis),), axis, slice(k))
    return [expansion.negative(first), *_by(ctx, below, [place], axis, k)]


def _ordered(ctx: Context, value: Tensor, axis: int) -> Tensor:
    """The entries in order: neighbours are exchanged, as often as there are entries."""
    length = value.shape[axis]
    if length > _SORTED:
        value = leading_term(value)
    if _simple(value):
        return _sorted(value, axis)
    if length > _SORTED:
        ctx.fail(f"Sorting {length} values of several orders: at most {_SORTED}.")
    entries = [parts((value,), axis, slice(i, i + 1))[0] for i in range(length)]
    for turn in range(length):
        for i in range(turn % 2, length - 1, 2):
            a, b = entries[i : i + 2]
            entries[i : i + 2] = larger(ctx, a, b, -1), larger(ctx, a, b, 1)
    return side_by_side(entries, axis)


def _by(
    ctx: Context, key: Tensor, others: Sequence[Tensor], axis: int, count: int | None = None
) -> list[Tensor]:
    """The first ``count`` of other values in the order of a key, which its leading term tells.

    Where two neighbours may be the other way round, the outcome with the other one is kept beside.
    """
    if not others or key.shape[axis] < 2:
        return [parts((other,), axis, slice(count))[0] for other in others]
    what = "The order of values"
    first = with_one_exponent(leading_term(key))
    order = jnp.argsort(jnp.asarray(first.coefficient), axis, stable=True)
    taken = lambda array: jnp.take_along_axis(jnp.broadcast_to(array, key.shape), order, axis)
    apart, nearest = _neighbours(first, taken, axis)
    tie = doubts.undecided(ctx, what, tied=True)
    tied = (apart.coefficient == 0) & taken(not_told(first, jnp.ones(key.shape, bool)))
    ctx.check(~knowledge.beyond_accident(tied, key), tie)
    doubts.decides(ctx, apart, what)
    if first.finite and first.shape[axis] > 2:
        doubts.no_third(ctx, _beyond_neighbours(first, taken, axis), what)
    found = []
    for other in others:
        (one,) = with_common_exponents([other], ctx.terms)
        space = ctx.spaces.unify(key.space, one.space)
        out = rearranged([one], taken, key.axis, space)
        out = replace(out, remainder=Exponents(out.remainder.max()).maximum(flips(ctx, first)))
        beside = jnp.take_along_axis(jnp.asarray(out.coefficient), nearest, axis)
        kept = [parts((value,), axis, slice(count))[0] for value in (out, apart)]
        found.append(
            doubts.taken(ctx, kept[0], lax.slice_in_dim(beside, 0, count, axis=axis), kept[1], what)
        )
    return found


def _neighbours(first: Tensor, taken: Callable[[Any], Any], axis: int) -> tuple[Tensor, Any]:
    """How far each of the entries in order is from the nearest one, and the place of that."""
    c = taken(first.coefficient)
    gaps = jnp.diff(c.astype(jnp.result_type(c, float)), axis=axis)
    ends = (
        [(int(i == axis), 0) for i in range(gaps.ndim)],
        [(0, int(i == axis)) for i in range(gaps.ndim)],
    )
    before, after = (jnp.pad(gaps, end, constant_values=jnp.inf) for end in ends)
    place = jnp.arange(c.shape[axis]).reshape([-1] + [1] * (c.ndim - axis - 1))
    nearest = jnp.where(after <= before, place + 1, place - 1)
    stderr = None
    if first.stderr is not None:
        error = taken(first.stderr)
        stderr = error + jnp.take_along_axis(error, nearest, axis)
    gap = jnp.minimum(before, after)
    return tensor(gap, first.exponents, axis=first.axis, space=first.space, stderr=stderr), nearest


def _beyond_neighbours(first: Tensor, taken: Callable[[Any], Any], axis: int) -> Tensor:
    """How far each of numbers in order is from the second one after it."""
    two_on = lambda array: lax.slice_in_dim(array, 2, None, axis=axis)
    start = lambda array: lax.slice_in_dim(array, 0, -2, axis=axis)
    c, stderr = taken(first.coefficient), None
    if first.stderr is not None:
        error = taken(first.stderr)
        stderr = two_on(error) + start(error)
    return tensor(two_on(c) - start(c), first.exponents, stderr=stderr)


def _sorted(value: Tensor, axis: int) -> Tensor:
    """The order of the coefficients: no entry moves by more than the largest change of one."""
    c = jnp.asarray(value.coefficient)
    stderr = None
    if value.stderr is not None:
        errors = jnp.broadcast_to(value.stderr, value.shape)
        stderr = jnp.take_along_axis(errors, jnp.argsort(c, axis), axis)
    remainder = Exponents(value.remainder.max())
    exponents = value.exponents if value.exponents.uniform else ORDER_ONE
    return tensor(jnp.sort(c, axis), exponents, remainder, value.axis, value.space, stderr)


for _rule in (cumulative_product, cumulative_extremum, sort, top_k):
    _rule.several(_rule)


@RULES(p.cumlogsumexp_p)
def not_yet(ctx: Context, value: Tensor, axis: int | None = None, **_: Any) -> Any:
    """Refused: along a width there is no order; along finite axes there is no rule."""
    _finite(ctx, value, len(value.shape) - 1 if axis is None else axis)
    ctx.fail(f"{ctx.equation.primitive.name} of values of a width is not supported yet.")
