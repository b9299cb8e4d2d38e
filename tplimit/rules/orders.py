"""What runs along a finite axis: products, running sums and extrema, order."""

from typing import Any

import jax.numpy as jnp

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion
from tplimit.errors import NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.rules.along import accumulated, joined, parts, side_by_side
from tplimit.rules.comparisons import larger
from tplimit.values.exponents import NEVER, ORDER_ONE, Exponents
from tplimit.values.tensors import Tensor, leading_term, tensor

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
def sort(ctx: Context, *values: Tensor, dimension: int, **_: Any) -> list[Tensor]:
    """Order along a finite axis: neighbours are exchanged, as often as there are entries."""
    value = values[0]
    _finite(ctx, value, dimension)
    if len(values) > 1:
        ctx.fail("The order of one array by another one is not supported along values of a width.")
    length = value.shape[dimension]
    if length > _SORTED:
        value = leading_term(value)
    if _simple(value):
        return [_sorted(value, dimension)]
    if length > _SORTED:
        ctx.fail(f"Sorting {length} values of several orders: at most {_SORTED}.")
    entries = [parts((value,), dimension, slice(i, i + 1))[0] for i in range(length)]
    for turn in range(length):
        for i in range(turn % 2, length - 1, 2):
            a, b = entries[i : i + 2]
            entries[i : i + 2] = larger(ctx, a, b, -1), larger(ctx, a, b, 1)
    return [side_by_side(entries, dimension)]


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


for _rule in (cumulative_product, cumulative_extremum, sort):
    _rule.several(_rule)


@RULES(p.top_k_p, p.cumlogsumexp_p)
def not_yet(ctx: Context, value: Tensor, axis: int | None = None, **_: Any) -> Any:
    """Refused: along a width there is no order; along finite axes there is no rule."""
    _finite(ctx, value, len(value.shape) - 1 if axis is None else axis)
    ctx.fail(f"{ctx.equation.primitive.name} of values of a width is not supported yet.")
