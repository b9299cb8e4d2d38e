"""Comparisons, and what takes the larger of two values: where signs decide, entry by entry."""

import functools
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion, knowledge
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.traits import Relation
from tplimit.rules.along import joined
from tplimit.rules.discrete import flips
from tplimit.rules.entrywise import of_entries
from tplimit.rules.reductions import (
    arg_extremum,
    extremum_along,
    extremum_is_apart,
    extremum_is_known,
    index_of_second,
    reduce_extremum,
    second_largest,
)
from tplimit.rules.terms import leading_of, root_of, zero_with
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Exponents
from tplimit.values.parity import EVEN
from tplimit.values.sampling_errors import ZERO_SIGMAS
from tplimit.values.tensors import (
    Extremum,
    Patch,
    Tensor,
    knowing,
    tensor,
    with_one_exponent,
    with_parity,
)

_comparison = RULES.of_kind(Relation)
_comparison.matrices(of_entries)


@_comparison.one
def comparison(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Decided by the leading term of the difference."""
    kind = ctx.kind
    assert isinstance(kind, Relation)
    axis, space = arithmetic.common_axis(ctx, a, b)
    if a is b:
        return tensor(np.full(a.shape, kind.of_equals), ORDER_ONE, EXACT_ZERO, axis, space)
    if a.dtype.kind != b.dtype.kind:  # an integer that follows the width is a coefficient
        a, b = (arithmetic.linear(x, lambda c: jnp.asarray(c, float)) for x in (a, b))
    if a.exact and b.exact and a.exponents == b.exponents and a.stderr is b.stderr is None:
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ORDER_ONE, EXACT_ZERO, axis, space)
    if a.dtype.kind != "f":  # an index of every coordinate may be another one on a share of them
        share = a.remainder.maximum(b.remainder)
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ORDER_ONE, share, axis, space)
    chosen = _chosen(ctx, a, b)
    chosen = _with_constant(ctx, a, b) if chosen is None else chosen
    if chosen is not None:
        return chosen
    exponents = a.exponents.maximum(b.exponents)
    infinite = arithmetic.infinite(a) or arithmetic.infinite(b)
    # Infinity is beyond every power of the width.
    x, y = (v.coefficient if infinite else arithmetic.at_exponents(v, exponents) for v in (a, b))
    difference = arithmetic.add(ctx, a, b, sign=-1) if not infinite else None
    if (
        (difference is not None and not difference.exact)
        or a.stderr is not None
        or b.stderr is not None
    ):
        _decided(ctx, a, b, difference, x, y)
    if difference is None:
        return tensor(kind.function(x, y), ORDER_ONE, EXACT_ZERO, axis, space)
    return _both_ways(
        ctx, tensor(kind.function(x, y), ORDER_ONE, flips(ctx, difference), axis, space), difference
    )


def _with_constant(ctx: Context, a: Tensor, b: Tensor) -> Tensor | None:
    """A comparison with a constant beside which a vector vanishes: the same for all coordinates."""
    kind = ctx.kind
    assert isinstance(kind, Relation)
    for number, other, side in ((a, b, 1), (b, a, -1)):
        sign = side * expansion.above_all(number, other)
        if sign:
            with jax.ensure_compile_time_eval():
                holds = bool(kind.function(jnp.asarray(sign), jnp.asarray(0)))
            shape = np.broadcast_shapes(a.shape, b.shape)
            share = ctx.flips(patches.bound_of(other) - number.exponents.max())
            # What holds nowhere is zero as a number, too.
            exponents = ORDER_ONE if holds else EXACT_ZERO
            mask = tensor(np.full(shape, holds), exponents, axis=other.axis, space=other.space)
            mask = with_parity(mask, EVEN)
            if ctx.terms == 1:
                return replace(mask, remainder=Exponents(share))
            return patches.with_patches(mask, Patch(share, Fraction(0)))
    return None


def _both_ways(ctx: Context, mask: Tensor, difference: Tensor) -> Tensor:
    """A mask that the sign of a difference decides, with its other outcomes."""
    other = ~jnp.asarray(mask.coefficient)
    plain = difference.exact and difference.stderr is None
    if _is_equality(ctx) and difference.finite and not plain:
        of_equals = bool(ctx.equation.primitive is p.eq_p)
        mask = knowing(mask, generic=np.full(mask.shape, not of_equals))
    return doubts.taken(ctx, mask, other, difference, "A comparison")


def _is_equality(ctx: Context) -> bool:
    return ctx.equation.primitive in (p.eq_p, p.ne_p)


def _chosen(ctx: Context, a: Tensor, b: Tensor) -> Tensor | None:
    """Whether a value is the extremum of several (derivatives of extrema ask), if it is about that.

    It is where it is not less than the others. Of those only the difference is known: a value and
    the extremum have the same unknown part where they are the same.
    """
    if not _is_equality(ctx):
        return None
    for value, extremum in ((a, b), (b, a)):
        known = extremum.facts.extremum_of
        if known is None:
            continue
        # A zero is made anew wherever it is written.
        same = [one is value or (one.vanishes and value.vanishes) for one in known.candidates]
        if not any(same):
            continue
        if known.axes:
            return _largest_along(ctx, value, extremum, known)
        if not all(same):
            other = known.candidates[same.index(False)]
            infinite = any(map(arithmetic.infinite, known.candidates))
            return None if infinite else _not_less(ctx, value, other, known.side)
    return None


def _not_less(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
    """Mask of ``a >= b`` (side 1) or ``a <= b`` (-1) for an equality with the extremum."""
    kind, what = ctx.kind, "A comparison"
    assert isinstance(kind, Relation)
    if ctx.terms > 1:
        difference = expansion.minus(ctx, a, b)
        signs, share, parity = expansion.sign_of(ctx, difference, what)
        holds = kind.function(side * signs >= 0, True)
        return _both_ways(ctx, expansion.mask_of(holds, share, parity, difference), difference)
    difference = arithmetic.add(ctx, a, b, sign=-1)
    doubts.decides(ctx, difference, what)
    if not difference.exact:
        tied = difference.coefficient == 0
        tied = tied if difference.zeros is None else tied & ~difference.zeros
        error = doubts.undecided(ctx, what, tied=True)
        ctx.check(~knowledge.beyond_accident(tied, difference), error)
    holds = kind.function(side * difference.coefficient >= 0, True)
    mask = tensor(holds, ORDER_ONE, flips(ctx, difference), difference.axis, difference.space)
    return _both_ways(ctx, mask, difference)


def _largest_along(ctx: Context, value: Tensor, extremum: Tensor, known: Extremum) -> Tensor | None:
    """Mask of the entries along axes that are the extremum, by all known terms."""
    kept = tuple(1 if i in known.axes else size for i, size in enumerate(value.shape))
    if extremum.shape != kept or value.axis in known.axes:
        return None
    kind, what = ctx.kind, "Which of several values is the extremum"
    assert isinstance(kind, Relation)

    def both_ways(mask: Tensor, apart: Tensor | None, largest: Any) -> Tensor:
        second = kind.function(second_largest(value, known.axes, known.side, largest), True)
        return doubts.taken(ctx, mask, second, apart, what, known.axes)

    if ctx.terms == 1:
        first = with_one_exponent(value)
        apart = extremum_is_known(ctx, first, known.axes, known.side, what)
        largest = first.coefficient == with_one_exponent(extremum).coefficient
        holds = kind.function(largest, True)
        mask = tensor(holds, ORDER_ONE, flips(ctx, first), value.axis, value.space)
        return both_ways(mask, apart, largest)
    difference = expansion.minus(ctx, value, extremum)
    zeros = [jnp.asarray(term.coefficient) == 0 for term in difference.terms]
    equal = functools.reduce(jnp.logical_and, zeros)
    apart = extremum_is_known(ctx, value, known.axes, known.side, what, equal)
    below = max([value.remainder.max(), *(term.exponents.max() for term in value.terms[1:])])
    least = min([level for level in value.exponents.levels() if level != NEVER], default=NEVER)
    share = NEVER if NEVER in (below, least) else below - least
    parity = expansion.plus_parity([value])
    mask = expansion.mask_of(kind.function(equal, True), Exponents(share), parity, difference)
    return both_ways(mask, apart, equal)


def _decided(ctx: Context, a: Tensor, b: Tensor, difference: Tensor | None, x: Any, y: Any) -> None:
    """A comparison must be decided by known terms: never by a coefficient that vanishes."""
    if difference is None:
        return
    if not _is_equality(ctx):
        doubts.decides(ctx, difference, "A comparison")
    if not difference.exact:
        # Equal leading coefficients decide where both values are exactly zero only.
        lost = difference.remainder.map(lambda r: float(r != NEVER)).mask(1)
        tied = jnp.asarray((x == y) & lost)
        for sure in (_both(a, b, tied.shape), difference.zeros):
            tied = tied if sure is None else tied & ~sure
        error = doubts.undecided(ctx, "A comparison", tied=True)
        ctx.check(~knowledge.beyond_accident(tied, difference), error)


def _both(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Any:
    """Entries where both values are known to be exactly zero, or None."""
    masks = arithmetic.zero_mask(a, shape), arithmetic.zero_mask(b, shape)
    return None if masks[0] is None or masks[1] is None else masks[0] & masks[1]


@_comparison.several
def comparison_of_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Decided by the first term of the difference that is not exactly zero."""
    primitive = ctx.equation.primitive
    positive = (primitive is p.gt_p and b.vanishes) or (primitive is p.lt_p and a.vanishes)
    if positive:
        a, b = part_of(a), part_of(b)
    chosen = _chosen(ctx, a, b)
    chosen = _with_constant(ctx, a, b) if chosen is None else chosen
    mask = _mask(ctx, a, b) if chosen is None else chosen
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
        if mask.finite:
            return mask
        bare = replace(mask, remainder=EXACT_ZERO)
        mask = expansion.mask_of(mask.coefficient, mask.remainder, mask.parity, bare)
        whole = a.dtype.kind != "f"  # then it is wrong where the numbers are
        return patches.with_patches(mask, *a.patches, *b.patches) if whole else mask
    difference = expansion.minus(ctx, a, b)
    if _is_equality(ctx):
        zeros = [jnp.asarray(term.coefficient) == 0 for term in difference.terms]
        equal = functools.reduce(jnp.logical_and, zeros)
        if difference.remainder != EXACT_ZERO:
            error = doubts.undecided(ctx, "A comparison", tied=True)
            ctx.check(~knowledge.beyond_accident(equal, difference), error)
        holds = kind.function(equal, True)
        share, parity = EXACT_ZERO, expansion.plus_parity([difference])
    else:
        signs, share, parity = expansion.sign_of(ctx, difference, "A comparison")
        holds = kind.function(signs, jnp.zeros_like(signs))
    return _both_ways(ctx, expansion.mask_of(holds, share, parity, difference), difference)


# --- maximum, minimum, absolute value


def larger(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
    """Maximum (side 1) or minimum (-1) of values of as many terms as are kept."""
    extremum = _extremum if ctx.terms == 1 else _extremum_of_series
    return extremum(ctx, a, b, side)


@RULES(p.max_p, p.min_p)
def extremum(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Maximum and minimum: positively homogeneous, so they act on the leading coefficients."""
    return _with_candidates(a, b, _side(ctx), _extremum(ctx, a, b, _side(ctx)))


def _with_candidates(a: Tensor, b: Tensor, side: int, out: Tensor) -> Tensor:
    """The extremum of two values, of which is known that it is one."""
    return out if out is a or out is b else knowing(out, extremum_of=Extremum((a, b), (), side))


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
    stderr = _error_of_extremum(a, b, exponents, x, y, side)
    zeros = None
    if axis is not None:
        zeros = _extremum_zeros(a, b, x, y, side)
    remainder = a.remainder.maximum(b.remainder, lost)
    return tensor(out, exponents, remainder, axis, space, stderr, zeros)


def _error_of_extremum(
    a: Tensor, b: Tensor, exponents: Exponents, x: Any, y: Any, side: int
) -> Any:
    """The error of the side that is larger; where that is not sure, the larger error."""
    errors = [arithmetic.stderr_at_exponents(value, exponents) for value in (a, b)]
    if errors[0] is None and errors[1] is None:
        return None
    first, second = (0.0 if error is None else error for error in errors)
    sure = jnp.abs(x - y) > ZERO_SIGMAS * jnp.hypot(first, second)
    larger = jnp.where(side * (x - y) > 0, first, second)
    return jnp.where(sure, larger, jnp.maximum(first, second))


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
    return _with_candidates(a, b, _side(ctx), _extremum_of_series(ctx, a, b, _side(ctx)))


def _extremum_of_series(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
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
    # The smaller of two orders may win: then the leading term is 0.
    simple = simple and a.exact and b.exact and (with_zero or a.exponents == b.exponents)
    if simple or arithmetic.infinite(a) or arithmetic.infinite(b):
        out = with_parity(_extremum(ctx, a, b, side), expansion.plus_parity((a, b)))
    else:
        out = expansion.extremum(ctx, a, b, side)
    if rectified and out.axis is not None:
        out = knowing(out, positive_part_of=other)
    return zero_with(other, out) if with_zero else out


@RULES(p.clamp_p)
def clamp(ctx: Context, low: Tensor, a: Tensor, high: Tensor) -> Tensor:
    """Clamp: a minimum of a maximum."""
    return _extremum(ctx, _extremum(ctx, a, low, 1), high, -1)


@clamp.several
def clamp_of_series(ctx: Context, low: Tensor, a: Tensor, high: Tensor) -> Tensor:
    least = _with_candidates(a, low, 1, _extremum_of_series(ctx, a, low, 1))
    return _extremum_of_series(ctx, least, high, -1)


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


for _rule in (extremum, clamp, absolute):
    _rule.matrices(of_entries)


# --- along a finite axis


@arg_extremum.several
def index_of_series(ctx: Context, value: Tensor, axes: tuple[int, ...], **params: Any) -> Tensor:
    """Index of the largest entry, the first of equal ones."""
    simple = not value.terms[1:] and value.exact and value.exponents.uniform
    if simple or value.axis in axes or value.dtype.kind != "f":
        return leading_of(ctx, value)
    (axis,), side = axes, 1 if ctx.equation.primitive is p.argmax_p else -1
    places = np.arange(value.shape[axis], dtype=params["index_dtype"])
    places = places.reshape([-1] + [1] * (len(value.shape) - axis - 1))
    where = with_parity(tensor(np.broadcast_to(places, value.shape)), EVEN)
    where = replace(where, axis=value.axis, space=value.space)

    def later(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (a, first), (b, second) = one, other
        difference = expansion.minus(ctx, a, b)
        signs, share, parity = expansion.sign_of(ctx, difference, "The index of an extremum")
        chosen = expansion.mask_of(side * signs >= 0, share, parity, difference)
        equal = jnp.minimum(first.coefficient, second.coefficient)
        index = jnp.where(side * signs > 0, first.coefficient, second.coefficient)
        index = jnp.where(signs == 0, equal, index)
        known = with_parity(replace(chosen, patches=()), parity & first.parity & second.parity)
        known = replace(known, terms=(replace(known.terms[0], coefficient=index),))
        found = (*chosen.patches, *first.patches, *second.patches)
        return (
            expansion.select_continuously(ctx, chosen, (a, b)),
            patches.with_patches(known, *found),
        )

    what = "The index of an extremum"
    apart = extremum_is_apart(ctx, value, axes, side, what)
    index = joined((value, where), axis, later)[1]
    return doubts.taken(ctx, index, index_of_second(value, axes, side, index), apart, what)


@reduce_extremum.several
def largest_of_series(ctx: Context, value: Tensor, axes: tuple[int, ...], **_: Any) -> Tensor:
    """Maximum along finite axes."""
    array = value
    simple = not value.terms[1:] and not value.patches and value.exponents.uniform
    if simple or value.axis in axes or value.dtype.kind != "f":
        return extremum_along(ctx, array, axes, leading_of(ctx, value))
    for axis in sorted(axes, reverse=True):
        (value,) = joined(
            (value,), axis, lambda a, b: (expansion.extremum(ctx, a[0], b[0], _side(ctx)),)
        )
    return extremum_along(ctx, array, axes, value)
