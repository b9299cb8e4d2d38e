"""Sums and extrema: over finite axes plain, over a width an average."""

import functools
import operator
from dataclasses import replace
from fractions import Fraction
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion, knowledge
from tplimit.errors import NEXT_TERM_ADVICE, CancellationError, NoLimitError
from tplimit.interpreter import doubts, layers
from tplimit.interpreter.cancellation import Balance
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices, products
from tplimit.matrices.parts import Matrix
from tplimit.rules import inner
from tplimit.rules.discrete import flips
from tplimit.rules.terms import one_term_of
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Exponents, Size
from tplimit.values.parity import EVEN
from tplimit.values.rearranging import at, gathered
from tplimit.values.tensors import (
    Extremum,
    Matrices,
    Tensor,
    Value,
    knowing,
    leading_term,
    map_items,
    tensor,
    with_one_exponent,
    with_parity,
)


@RULES(p.reduce_sum_p)
def reduce_sum(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Sum; over a width the law of large numbers (Master Theorem, Yang, TP III)."""
    if value.axis not in axes:
        return finite_sum(ctx, value, axes)
    assert value.axis is not None
    size = ctx.equation.in_avals[0].shape[value.axis]
    assert isinstance(size, Size)
    averaged = arithmetic.width_sum(ctx, value, size)
    left = tuple(axis - (axis > value.axis) for axis in axes if axis != value.axis)
    return finite_sum(ctx, averaged, left) if left else averaged


@reduce_sum.several
def sum_of_series(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Over a width each term is its mean and its central-limit term."""
    over = value.axis is not None and value.axis in axes
    parts = []
    for piece in expansion.pieces(value):
        if over:
            reduce = functools.partial(one_term_of, ctx)
            parts += expansion.averaged(ctx, reduce, piece, piece.parity, value.space)
        else:
            parts.append(expansion.symmetric(one_term_of(ctx, piece), piece.parity))
    if over:
        return summed(ctx, parts, value)
    return patches.inheriting(expansion.total(ctx, parts), value)


def summed(ctx: Context, parts: list[Tensor], *values: Tensor) -> Tensor:
    """A sum over a width, with what is unknown in places of the factors of the summands."""
    layer = layers.average(ctx, functools.partial(one_term_of, ctx), *values)
    if layer is not None:
        values = tuple(map(patches.without_rare, values))
    lost = patches.averaged(Fraction(1), *values)
    unknown = replace(expansion.zero(parts[0]), remainder=EXACT_ZERO.maximum(*lost))
    out = expansion.total(ctx, [*parts, unknown])
    return out if layer is None else expansion.add(ctx, out, layer)


def finite_sum(ctx: Context, value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum over finite axes: the largest exponent leads."""
    leading: Any = True
    if value.exponents.uniform:
        c = jnp.sum(jnp.asarray(value.coefficient), axes, dtype=value.dtype)
        exponents = value.exponents
        remainder = Exponents(value.remainder.max())
    else:
        full = _full(value.exponents, value)
        top = np.maximum.reduce(full, axis=axes, keepdims=True)
        leading = np.asarray(full == top, dtype=bool)
        c = jnp.sum(jnp.where(leading, jnp.asarray(value.coefficient), 0), axes, dtype=value.dtype)
        exponents = Exponents(np.squeeze(top, axes))
        below = np.where(leading, NEVER, full)
        lost = np.maximum(
            np.maximum.reduce(below, axis=axes),
            np.maximum.reduce(_full(value.remainder, value), axis=axes),
        )
        remainder = Exponents(lost)
    stderr = None
    if value.stderr is not None:
        stderr = jnp.sum(jnp.broadcast_to(value.stderr, value.shape), axes)
    axis = _left(value.axis, axes)

    zeros = None if value.zeros is None else jnp.all(value.zeros, axes)
    total = tensor(c, exponents, remainder, axis, value.space, stderr, zeros)
    both = lambda array: (jnp.sum(array, axes), jnp.sum(jnp.abs(array), axes))
    summands = lambda: jnp.where(leading, jnp.asarray(value.coefficient), 0)
    return arithmetic.less_cancelled(ctx, total, lambda: Balance(both, [summands()], [value.axis]))


def _left(axis: int | None, axes: tuple[int, ...]) -> int | None:
    """Where an axis is when others are gone."""
    return None if axis is None else axis - sum(1 for other in axes if other < axis)


def _full(exponents: Exponents, value: Tensor) -> np.ndarray:
    shape = tuple(1 if i == value.axis else d for i, d in enumerate(value.shape))
    return np.broadcast_to(exponents.array, shape)


@reduce_sum.matrices
def sum_of_matrices(ctx: Context, value: Matrices, axes: tuple[int, ...], **_: Any) -> Value:
    """Over finite axes a sum of matrices, over a width a product with the constant vector."""
    finite = tuple(i for i, axis in enumerate(value.finite_axes) if axis in axes)
    items = value.items
    if finite:
        items = _folded(ctx, items, finite)
    widths = [axis for axis in value.axes if axis in axes]
    left = [axis for axis in range(value.ndim) if axis not in axes or axis in value.axes]
    places = (left.index(value.axes[0]), left.index(value.axes[1]))
    if not widths:
        return Matrices(items, places)
    transposed = widths[-1] != value.axes[1]
    one = functools.partial(_sum_of_one, ctx, transposed, len(widths) == 2)
    # Of both places one is left where a width is.
    kept = None if len(widths) == 2 else value.axes[1] if transposed else value.axes[0]
    place = None if kept is None else kept - sum(axis < kept for axis in axes)
    sums = map_items(one, items)
    return gathered(sums, place, ctx.spaces.unify(*(value.space for value in sums.flat)))


def _sum_of_one(ctx: Context, transposed: bool, both: bool, matrix: Matrix) -> Tensor:
    """Sum over the columns of a matrix, or its rows, or both."""
    matrix, total = inner.without_totals(ctx, matrix)
    matrix = matrix.T if transposed else matrix
    vector = _times_ones(ctx, matrix)
    if not both:
        return vector
    out = inner.over_width(ctx, vector, matrix.rows)
    out = out if ctx.terms == 1 else summed(ctx, expansion.pieces(out), vector)
    return out if total is None else expansion.plus(ctx, total, out)


def _times_ones(ctx: Context, matrix: Matrix) -> Tensor:
    """Sum over the columns of a matrix: a query with the constant vector."""
    ones = tensor(jnp.ones((1, ctx.size(matrix.columns)), jnp.result_type(float)), axis=1)
    return at(products.apply(ctx, matrix, with_parity(ones, EVEN), matrix.columns), (0,))


def _folded(ctx: Context, items: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    keep = [i for i in range(items.ndim) if i not in axes]
    moved = np.transpose(items, [*keep, *axes]).reshape([items.shape[i] for i in keep] + [-1])
    out = np.empty(moved.shape[:-1], dtype=object)
    for index in np.ndindex(out.shape):
        total = moved[index][0] if moved.ndim > 1 else moved[0]
        for item in moved[index][1:]:
            total = matrices.sum_of(ctx, total, item)
        out[index] = total
    return out


@RULES(p.reduce_max_p, p.reduce_min_p, p.reduce_and_p, p.reduce_or_p)
def reduce_extremum(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Extremum over finite axes; over a width only where nothing depends on it in the limit, as in
    a softmax, or where all coordinates agree, as in ``isfinite(x).all()``."""
    if value.axis in axes:
        return _extremum_over_width(ctx, value)
    array, value = value, with_one_exponent(value)
    axis = _left(value.axis, axes)
    remainder = Exponents(value.remainder.max())
    stderr = None
    if value.stderr is not None:
        stderr = jnp.max(jnp.broadcast_to(value.stderr, value.shape), axes)
    out = tensor(
        ctx.rebind(value.coefficient), value.exponents, remainder, axis, value.space, stderr
    )
    return extremum_along(ctx, array, axes, out)


def _extremum_over_width(ctx: Context, value: Tensor) -> Tensor:
    """The extremum of the particles, of which the limit has to be independent."""
    error = ctx.error(
        f"{ctx.equation.primitive.name} over a width has no limit: it is decided by the most "
        "extreme coordinate.",
        NoLimitError,
        "Use an average over the width instead. What is subtracted before an exponential and added "
        "again is fine: jax.nn.softmax, jax.nn.logsumexp.",
    )
    known = value.facts.alike or ctx.exact
    if not known and (value.dtype.kind != "f" or value.exponents.max() > 0):
        raise error
    value = with_one_exponent(value)
    found = ctx.rebind(value.coefficient)
    if known:
        return tensor(found, value.exponents, Exponents(value.remainder.max()))
    return tensor(ctx.arbitrary(found, error), ORDER_ONE)


@reduce_extremum.matrices
def extremum_of_matrices(ctx: Context, value: Matrices, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Only whether all (any) entries are finite: see ``is_finite``."""
    if not value.facts.alike or any(axis not in axes for axis in range(value.ndim)):
        matrices.unsupported(ctx, f"{ctx.equation.primitive.name} over some of its axes")
    reduce = jnp.any if ctx.equation.primitive is p.reduce_or_p else jnp.all
    return tensor(reduce(jnp.stack([reduce(x) for x in jax.tree.leaves(value)])))


def extremum_along(ctx: Context, value: Tensor, axes: tuple[int, ...], out: Tensor) -> Tensor:
    """The extremum of a value along axes, of which is known that it is one."""
    if value.dtype.kind != "f":
        return out
    side = -1 if ctx.equation.primitive is p.reduce_min_p else 1
    return knowing(out, extremum_of=Extremum((value,), axes, side))


def extremum_is_known(
    ctx: Context, value: Tensor, axes: tuple[int, ...], side: int, what: str, equal: Any = None
) -> Tensor | None:
    """Check, when the run is over, which entry along finite axes is the largest (smallest).

    ``equal`` marks those that are, by all known terms; else the leading term tells. Entries that
    are all exactly zero, such as those of dead units, are as large as each other.

    Returns: see ``extremum_is_apart``.
    """
    if _alone(value, axes):
        return None
    first = with_one_exponent(leading_term(value))
    c = side * jnp.asarray(first.coefficient)
    error = ctx.error(
        f"{what} is not known: the largest entries are equal within their "
        "sampling error, or in all known terms.",
        CancellationError,
        NEXT_TERM_ADVICE,
    )
    apart = extremum_is_apart(ctx, value, axes, side, what)
    known = first
    if equal is None:
        equal = c == jnp.max(c, axes, keepdims=True)
    else:
        known = value
    tied = (jnp.sum(equal, axes) > 1) & jnp.any(not_told(known, equal), axes)
    ctx.check(~knowledge.beyond_accident(tied, value), error)
    return apart


def extremum_is_apart(
    ctx: Context, value: Tensor, axes: tuple[int, ...], side: int, what: str
) -> Tensor | None:
    """How far the largest entry along finite axes is from the second one, None if that is exact.

    Of vectors it must be known to differ from 0.
    """
    first = with_one_exponent(leading_term(value))
    if first.stderr is None or _alone(value, axes):
        return None
    c = side * jnp.asarray(first.coefficient)
    left = jnp.moveaxis(c, axes, range(len(axes)))
    ordered = jnp.sort(left.reshape(-1, *left.shape[len(axes) :]), axis=0)
    spread = jnp.max(jnp.broadcast_to(first.stderr, value.shape), axes)
    axis = _left(value.axis, axes)
    apart, *others = (
        tensor(ordered[-1] - one, first.exponents, axis=axis, stderr=spread)
        for one in ordered[-2:-4:-1]
    )
    doubts.decides(ctx, apart, what)
    for third in others:
        doubts.no_third(ctx, third, what)
    return apart


def _alone(value: Tensor, axes: tuple[int, ...]) -> bool:
    return bool(np.prod([value.shape[axis] for axis in axes]) < 2 or value.vanishes)


def second_largest(value: Tensor, axes: tuple[int, ...], side: int, largest: Any) -> Any:
    """Mask of the second largest (smallest) entry along finite axes.

    ``largest`` masks what was taken for the largest one, which among equal leading coefficients
    another term may have told.
    """
    c = side * jnp.asarray(with_one_exponent(leading_term(value)).coefficient)
    front, chosen = (jnp.moveaxis(array, axes, range(len(axes))) for array in (c, largest))
    flat, chosen = (a.reshape(-1, *front.shape[len(axes) :]) for a in (front, chosen))
    places = jnp.arange(len(flat)).reshape([-1] + [1] * (flat.ndim - 1))
    rest = jnp.where(places == jnp.argmax(chosen, 0), -jnp.inf, flat)
    second = places == jnp.argmax(rest, 0)
    return jnp.moveaxis(second.reshape(front.shape), range(len(axes)), axes)


def not_told(value: Tensor, entries: Any) -> Any:
    """Entries among these of which more may be unknown than the terms tell, save exact zeros."""
    unknown = value.remainder.map(lambda r: float(r != NEVER)).mask(1)
    unsure = entries & jnp.asarray(unknown)
    zeros = [term.zeros for term in value.terms]
    if all(mask is not None for mask in zeros):
        unsure = unsure & ~functools.reduce(operator.and_, zeros)
    for term in value.terms:
        unsure = unsure | patches.undecided(value, term.exponents, entries)
    return unsure


@RULES(p.argmax_p, p.argmin_p)
def arg_extremum(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Index of the largest (smallest) entry along a finite axis."""
    if value.axis in axes:
        _no_order(ctx)
    value = with_one_exponent(value)
    side = 1 if ctx.equation.primitive is p.argmax_p else -1
    what = "The index of an extremum"
    apart = extremum_is_known(ctx, value, axes, side, what)
    axis = _left(value.axis, axes)
    out = tensor(
        ctx.rebind(value.coefficient), ORDER_ONE, flips(ctx, value), axis=axis, space=value.space
    )
    return doubts.taken(ctx, out, index_of_second(value, axes, side, out), apart, what)


def index_of_second(value: Tensor, axes: tuple[int, ...], side: int, largest: Tensor) -> Any:
    """Index of the second largest (smallest) entry along a finite axis, beside the largest one."""
    (axis,) = axes
    places = jnp.arange(value.shape[axis]).reshape([-1] + [1] * (len(value.shape) - axis - 1))
    chosen = places == jnp.expand_dims(jnp.asarray(largest.coefficient), axis)
    return jnp.argmax(second_largest(value, axes, side, chosen), axis)


@arg_extremum.matrices
def _no_order(ctx: Context, *values: Value, **_: Any) -> NoReturn:
    ctx.fail("The index of an extremum along a width: its coordinates have no order.", NoLimitError)
