"""Comparisons, and what takes the larger of two values: where signs decide, entry by entry."""

import functools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.traits import Relation
from tplimit.rules.discrete import flips
from tplimit.rules.reductions import reduce_other
from tplimit.rules.terms import leading_of, root_of, zero_with
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE
from tplimit.values.rearranging import at
from tplimit.values.tensors import Tensor, knowing, tensor

_comparison = RULES.of_kind(Relation)


@_comparison.one
def comparison(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Decided by the leading term of the difference."""
    kind = ctx.kind
    assert isinstance(kind, Relation)
    axis, space = arithmetic.common_axis(ctx, a, b)
    if a is b:
        return tensor(np.full(a.shape, kind.of_equals), ORDER_ONE, EXACT_ZERO, axis, space)
    if a.exact and b.exact and a.exponents == b.exponents and a.stderr is b.stderr is None:
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ORDER_ONE, EXACT_ZERO, axis, space)
    if a.dtype.kind != "f":
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ORDER_ONE, EXACT_ZERO, axis, space)
    exponents = a.exponents.maximum(b.exponents)
    x, y = arithmetic.at_exponents(a, exponents), arithmetic.at_exponents(b, exponents)
    infinite = arithmetic.infinite(a) or arithmetic.infinite(b)
    difference = arithmetic.add(ctx, a, b, sign=-1) if not infinite else None
    if (
        (difference is not None and not difference.exact)
        or a.stderr is not None
        or b.stderr is not None
    ):
        _decided(ctx, a, b, difference, x, y)
    remainder = EXACT_ZERO if difference is None else flips(difference)
    return tensor(kind.function(x, y), ORDER_ONE, remainder, axis, space)


def _is_equality(ctx: Context) -> bool:
    return ctx.equation.primitive in (p.eq_p, p.ne_p)


def _decided(ctx: Context, a: Tensor, b: Tensor, difference: Tensor | None, x: Any, y: Any) -> None:
    """A comparison must be decided by known terms: never by a coefficient that vanishes."""
    if difference is None:
        return
    equality = _is_equality(ctx)
    error = arithmetic.undecided(ctx, "A comparison")
    if difference.axis is None:
        if not equality:
            ctx.check(arithmetic.decided(difference), error)
        return
    undecided = (x == 0) & (y == 0) if equality else x == y
    for value in (a, b):
        if value.vanishes and equality:
            other = b if value is a else a
            sure = other.zeros
        else:
            sure = value.zeros
        if sure is not None:
            undecided = undecided & ~sure
    if not equality and difference.zeros is not None:
        undecided = undecided & ~difference.zeros
    ctx.check(~arithmetic.beyond_accident(undecided, jnp.result_type(x)), error)


@_comparison.several
def comparison_of_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Decided by the first term of the difference that is not exactly zero."""
    primitive = ctx.equation.primitive
    positive = (primitive is p.gt_p and b.vanishes) or (primitive is p.lt_p and a.vanishes)
    if positive:
        a, b = part_of(a), part_of(b)
    mask = _mask(ctx, a, b)
    if positive and mask.axis is not None:
        mask = knowing(mask, positive_part_of=b if primitive is p.lt_p else a)
    if a.vanishes or b.vanishes:
        mask = knowing(mask, zero_with=root_of(b if a.vanishes else a))
    return mask


def part_of(value: Tensor) -> Tensor:
    """The vector whose positive part this one is, itself if that is not known.

    A rectifier of a rectified vector is that of the vector. Told by its terms it would hang on the
    lower ones where the leading one is 0, though they are 0 there too.
    """
    known = value.facts.positive_part_of
    return value if known is None else known


def _mask(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    kind = ctx.kind
    assert isinstance(kind, Relation)
    simple = not (a.terms[1:] or b.terms[1:] or a.patches or b.patches)
    if a is b or simple or a.dtype.kind != "f" or arithmetic.infinite(a) or arithmetic.infinite(b):
        mask = leading_of(ctx, a, b)
        bare = replace(mask, remainder=EXACT_ZERO)
        return expansion.mask_of(mask.coefficient, mask.remainder, mask.parity, bare)
    difference = expansion.minus(ctx, a, b)
    if _is_equality(ctx):
        zeros = [jnp.asarray(term.coefficient) == 0 for term in difference.terms]
        holds = kind.function(functools.reduce(jnp.logical_and, zeros), True)
        share, parity = EXACT_ZERO, expansion.plus_parity([difference])
    else:
        signs, share, parity = expansion.sign_of(ctx, difference, "A comparison")
        holds = kind.function(signs, jnp.zeros_like(signs))
    return expansion.mask_of(holds, share, parity, difference)


# --- maximum, minimum, absolute value


@RULES(p.max_p, p.min_p)
def extremum(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Maximum and minimum: positively homogeneous, so they act on the leading coefficients."""
    return _extremum(ctx, a, b, _side(ctx))


def _side(ctx: Context) -> int:
    """1 for a maximum, -1 for a minimum."""
    return 1 if ctx.equation.primitive in (p.max_p, p.reduce_max_p) else -1


def _against_infinity(a: Tensor, b: Tensor, side: int) -> Tensor | None:
    """The maximum (side 1) or minimum (-1) where one side is a bound that bounds nothing."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    for bound, other in ((a, b), (b, a)):
        if arithmetic.infinite(bound) == -side and other.shape == shape:
            return other
    return None


def _extremum(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
    unbounded = _against_infinity(a, b, side)
    if unbounded is not None:
        return unbounded
    axis, space = arithmetic.common_axis(ctx, a, b)
    exponents = a.exponents.maximum(b.exponents)
    lost = a.exponents.map(lambda x, y: min(x, y) if x != y else NEVER, b.exponents)
    x, y = arithmetic.at_exponents(a, exponents), arithmetic.at_exponents(b, exponents)
    out = jnp.maximum(x, y) if side > 0 else jnp.minimum(x, y)
    stderr = None
    if a.stderr is not None or b.stderr is not None:
        zero = jnp.zeros(jnp.shape(out), jnp.result_type(out))
        stderr = jnp.maximum(
            zero if a.stderr is None else a.stderr, zero if b.stderr is None else b.stderr
        )
    zeros = None
    if axis is not None:
        zeros = _extremum_zeros(a, b, x, y, side)
    remainder = a.remainder.maximum(b.remainder, lost)
    return tensor(out, exponents, remainder, axis, space, stderr, zeros)


def _extremum_zeros(a: Tensor, b: Tensor, x: Any, y: Any, side: int) -> Any:
    """Entries that are exactly zero: an exact zero won against a value of the other sign."""
    shape = np.broadcast_shapes(np.shape(x), np.shape(y))
    if b.vanishes:
        won = side * x < 0
    elif a.vanishes:
        won = side * y < 0
        a, b = b, a
    else:
        return None
    won = jnp.broadcast_to(won, shape)
    return won if a.zeros is None else won | a.zeros


@extremum.several
def extremum_of_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    side = _side(ctx)
    simple = not (a.terms[1:] or b.terms[1:] or a.patches or b.patches)
    unbounded = _against_infinity(a, b, side)
    if unbounded is not None:
        return unbounded
    with_zero = a.vanishes or b.vanishes
    other = b if a.vanishes else a
    whole = np.broadcast_shapes(a.shape, b.shape) == other.shape
    rectified = with_zero and whole and side == 1
    if rectified and other.facts.positive_part_of is not None:
        return other
    if simple or arithmetic.infinite(a) or arithmetic.infinite(b):
        out = leading_of(ctx, a, b)
    else:
        out = expansion.extremum(ctx, a, b, side)
    if rectified and out.axis is not None:
        out = knowing(out, positive_part_of=other)
    return zero_with(other, out) if with_zero else out


@RULES(p.clamp_p)
def clamp(ctx: Context, low: Tensor, a: Tensor, high: Tensor) -> Tensor:
    """Clamp: a minimum of a maximum."""
    return _extremum(ctx, _extremum(ctx, a, low, 1), high, -1)


@RULES(p.abs_p)
def absolute(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Absolute value: commutes with a positive scale."""
    return arithmetic.linear(a, jnp.abs)


@absolute.several
def absolute_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    out = expansion.extremum(ctx, a, expansion.negative(a), 1)
    if a.axis is not None and out.terms[0].exponents == a.exponents:
        # The size of the leading term; the others carry its sign.
        first = replace(out.terms[0], parity=a.parity.under("even"))
        out = replace(out, terms=(first, *out.terms[1:]))
    return zero_with(a, out)


@reduce_other.several
def largest_of_series(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Maximum along finite axes: of two halves, as long as there are two."""
    simple = not value.terms[1:] and not value.patches and value.exponents.uniform
    ordered = ctx.equation.primitive in (p.reduce_max_p, p.reduce_min_p)
    if simple or not ordered or value.axis in axes or value.dtype.kind != "f":
        return leading_of(ctx, value)
    for axis in sorted(axes, reverse=True):
        before: tuple[slice, ...] = (slice(None),) * axis
        while (length := value.shape[axis]) > 1:
            half = -(-length // 2)
            halves = (slice(half), slice(length - half, length))
            a, b = (at(value, (*before, part)) for part in halves)
            value = expansion.extremum(ctx, a, b, _side(ctx))
        value = at(value, (*before, 0))
    return value
