"""Values of several terms: truncated series in the width, for programs whose leading terms vanish.

A rule acts on values of one term. Here it is extended to sums of terms

    value = n^e_1 c_1 + n^e_2 c_2 + ... + O(n^rho),    e_1 > e_2 > ... > rho

- linear rules act on every term, bilinear ones on every pair, and results of equal exponent add;
- a smooth function acts by its Taylor expansion around what does not vanish;
- a sum over a width of ``n^e a`` is its mean and its central-limit term,
  ``n^(e+1) <a> + n^(e+1/2) M^(-1/2) sum(multiplier a) + O(n^e)``, where the mean is left out if
  symmetry makes it zero (``parity.py``);
- a comparison is decided by the first term that is not exactly zero, except for a vanishing share
  of the coordinates (``Patch``).

Whatever has no such rule acts on the leading term and leaves the others to the remainder.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic, knowledge
from tplimit.interpreter import doubts
from tplimit.interpreter.cancellation import of_summands
from tplimit.interpreter.context import Context
from tplimit.values import patches
from tplimit.values.exponents import (
    EXACT_ZERO,
    HALF,
    NEGLIGIBLE,
    NEVER,
    ORDER_ONE,
    Exponent,
    Exponents,
)
from tplimit.values.parity import EVEN, Behaviour, Parity
from tplimit.values.rearranging import restricted
from tplimit.values.tensors import Patch, Tensor, Term, leading_term, tensor, with_parity

#: Terms from which on it is asked which of the known terms of a number leads.
_CHOSEN = 4

#: From a piece (or two) of one term to a value of one term.
Piecewise = Callable[..., Tensor]


# --- pieces and sums


def pieces(value: Tensor) -> list[Tensor]:
    """Summands with one exponent each, besides exact zeros; what is unknown comes last."""
    found = [
        Tensor((restricted(term, level),), EXACT_ZERO, value.axis, value.space)
        for term in value.terms
        for level in term.exponents.levels()
        if level != NEVER
    ]
    if value.remainder != EXACT_ZERO:
        found.append(unknown_part(value))
    return found or [zero(value)]


def zero(value: Tensor) -> Tensor:
    """An exact zero of the form of a value."""
    none = jnp.zeros(value.shape, value.dtype)
    return with_parity(tensor(none, EXACT_ZERO, EXACT_ZERO, value.axis, value.space), EVEN)


def unknown_part(value: Tensor) -> Tensor:
    """What is unknown of a value, everywhere."""
    return replace(zero(value), remainder=value.remainder)


def total(ctx: Context, parts: Sequence[Tensor]) -> Tensor:
    """Sum of values of one term: equal exponents add, the largest are kept, entry by entry."""
    axis, space = arithmetic.common_axis(ctx, *parts)
    remainder = parts[0].remainder.maximum(*(part.remainder for part in parts[1:]))
    left = [part.exponents for part in parts]
    found: list[Patch] = []
    kept: list[tuple[Exponents, list[Tensor]]] = []
    while (top := left[0].maximum(*left[1:])) != EXACT_ZERO:
        those = [part for part, e in zip(parts, left, strict=True) if _meet(e, top)]
        gone = _cancelled(ctx, those, top, axis)
        if gone is not None:
            left = [e.map(lambda x, t, m: NEVER if m and x == t else x, top, gone) for e in left]
            continue
        if len(kept) == ctx.terms:
            dropped = [p for p, e in zip(parts, left, strict=True) if e != EXACT_ZERO]
            remainder, found = _lost(dropped, top, remainder)
            break
        kept.append((top, those))
        left = [e.map(lambda x, t: NEVER if x == t else x, top) for e in left]
    terms = []
    shape = np.broadcast_shapes(*(part.shape for part in parts))
    for top, those in kept:
        known = top.map(lambda e, r: e if e > r else NEVER, remainder)
        if known != EXACT_ZERO:
            terms.append(_added(top, known, those, shape))
    if not terms:
        dtype = jnp.result_type(*(part.dtype for part in parts))
        terms.append(Term(jnp.zeros(shape, dtype), EXACT_ZERO, parity=EVEN))
    if len(terms) == 1 and remainder != EXACT_ZERO:
        # Zeros of a single term stand for zeros of the value, and there may be something else.
        terms = [replace(terms[0], zeros=None)]
    return patches.with_patches(Tensor(tuple(terms), remainder, axis, space), *found)


def _cancelled(
    ctx: Context, parts: list[Tensor], top: Exponents, axis: int | None
) -> Exponents | None:
    """Where the sum of the parts that have these exponents cancels (``arithmetic.cancelled``)."""
    if len(parts) == 1 or not all(jnp.issubdtype(p.dtype, jnp.floating) for p in parts):
        return None
    summands = [arithmetic.at_exponents(part, top) for part in parts]
    return arithmetic.cancelled(ctx, lambda: of_summands(summands), axis)


def _lost(
    dropped: list[Tensor], top: Exponents, remainder: Exponents
) -> tuple[Exponents, list[Patch]]:
    """What is unknown where terms with these exponents are left out."""
    masks = [patches.reach(part) for part in dropped]
    if any(mask is None for mask in masks):
        return remainder.maximum(top), []
    mask = functools.reduce(operator.or_, masks)
    return remainder, [Patch(Fraction(0), top.max(), mask)]


def _meet(a: Exponents, b: Exponents) -> bool:
    same = a.map(lambda x, y: float(x == y and x != NEVER), b)
    return same.max() > 0


def _added(top: Exponents, known: Exponents, parts: list[Tensor], shape: tuple[int, ...]) -> Term:
    """One term: coefficients of the parts where they have the exponents ``top``."""
    summands = [arithmetic.at_exponents(part, top) for part in parts]
    coefficient = functools.reduce(operator.add, summands)
    coefficient = jnp.broadcast_to(coefficient, shape)
    stderrs = [arithmetic.stderr_at_exponents(part, top) for part in parts]
    stderr = arithmetic.combined_stderr(*stderrs)
    if stderr is not None:
        stderr = jnp.broadcast_to(stderr, shape)
    parity = functools.reduce(operator.and_, [part.parity for part in parts])
    if known != top:
        coefficient = jnp.where(known.mask(NEVER), jnp.zeros_like(coefficient), coefficient)
    zeros = parts[0].zeros
    for part in parts[1:]:
        zeros = None if zeros is None or part.zeros is None else zeros & part.zeros
    zeros = None if zeros is None else jnp.broadcast_to(zeros, shape)
    return Term(coefficient, known, stderr, zeros, parity)


def add(ctx: Context, *values: Tensor) -> Tensor:
    """Sum of series."""
    out = total(ctx, [piece for value in values for piece in pieces(value)])
    return patches.inheriting(out, *values)


def plus(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """Sum of values of as many terms as are kept."""
    return arithmetic.add(ctx, a, b) if ctx.terms == 1 else add(ctx, a, b)


def times(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """Product of values of as many terms as are kept."""
    return arithmetic.multiply(ctx, a, b) if ctx.terms == 1 else multiply(ctx, a, b)


# --- products


def bilinear(ctx: Context, product: Piecewise, a: Tensor, b: Tensor) -> Tensor:
    """A product of series, from that of two pieces."""
    found = []
    for x, y in itertools.product(pieces(a), pieces(b)):
        found.append(with_parity(product(x, y), parity_of_product(x, y)))
    return patches.inheriting(total(ctx, found), a, b, product=True)


def parity_of_product(a: Tensor, b: Tensor) -> Parity:
    """Finite factors are even, and change nothing."""
    if a.axis is None:
        return b.parity
    return a.parity if b.axis is None else a.parity * b.parity


def multiply(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """Product of series, entry by entry.

    What is unknown of a factor is unknown of the product where the other factor is not zero.
    """
    whole, found = [a, b], []
    for place, (one, other) in enumerate(((a, b), (b, a))):
        mask = patches.reach(other)
        if one.remainder != EXACT_ZERO and mask is not None:
            whole[place] = replace(one, remainder=EXACT_ZERO)
            bound = one.remainder.max() + patches.bound_of(other)
            found.append(Patch(Fraction(0), bound, mask))
    out = bilinear(ctx, lambda x, y: arithmetic.multiply(ctx, x, y), *whole)
    if not found:
        return out
    both = arithmetic.multiply(ctx, unknown_part(a), unknown_part(b))
    return patches.with_patches(add(ctx, out, both), *found)


def negative(value: Tensor) -> Tensor:
    terms = tuple(replace(term, coefficient=-jnp.asarray(term.coefficient)) for term in value.terms)
    return replace(value, terms=terms)


def minus(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """Difference of values of as many terms as are kept."""
    return arithmetic.add(ctx, a, b, -1) if ctx.terms == 1 else add(ctx, a, negative(b))


# --- sums over a width


def averaged(
    ctx: Context, reduce: Callable[[Tensor], Tensor], piece: Tensor, parity: Parity, space: Any
) -> list[Tensor]:
    """Mean and central-limit term of a sum over a width.

    Args:
        reduce: the sum of a piece by the law of large numbers.
        piece: a summand, or the factor of it that is multiplied by the multipliers.
        parity: of the summands.
        space: of the width, or None if it has none.
    """
    mean = reduce(piece)
    if piece.exponents == EXACT_ZERO or mean.exponents == EXACT_ZERO:
        return [mean]
    if space is None:
        # A share of a width: its fluctuations are not known, only their order.
        return [replace(zero(mean), remainder=mean.remainder) if parity.vanishes else mean]
    lost = mean.exponents + Fraction(-1)
    found = [replace(mean, remainder=lost)]
    if parity.vanishes:
        found = [replace(zero(mean), remainder=lost)]
    if ctx.bank is None or not ctx.bank.fluctuating:
        return found
    assert piece.axis is not None
    length = piece.shape[piece.axis]
    shape = [length if i == piece.axis else 1 for i in range(len(piece.shape))]
    multipliers = ctx.ledger.multipliers(space, length).reshape(shape)
    weighted = piece.coefficient * multipliers.astype(piece.dtype)

    def sum_of(summands: Any) -> Any:
        term = replace(piece.terms[0], coefficient=summands)
        return reduce(replace(piece, terms=(term,))).coefficient * np.asarray(
            ctx.root_n, piece.dtype
        )

    # What is constant along the width does not fluctuate: multipliers add up to nothing.
    coefficient = sum_of(weighted)
    fluctuation = tensor(coefficient, mean.exponents + -HALF)
    balance = lambda: (coefficient, jnp.abs(sum_of(jnp.abs(weighted))))
    found.append(arithmetic.less_cancelled(ctx, fluctuation, balance))
    return found


# --- smooth functions


def expanded(
    ctx: Context,
    value: Tensor,
    derivatives: Callable[[Tensor, int], Tensor],
    behaviour: Behaviour,
) -> Tensor:
    """A smooth function of a series: ``f(x + d) = f(x) + f'(x) d + f''(x) d^2 / 2 + ...``.

    ``x`` is the leading term where it does not vanish with the width, and 0 elsewhere.
    ``derivatives(x, k)`` is the k-th derivative at ``x`` over k!, a value of one term; it is told
    in the remainder of ``x`` that there is more, and leaves out what follows from it.
    """
    base, rest = _base(value)
    seen = replace(base, remainder=rest.exponents.maximum(rest.remainder))
    orders = 3 if _has_zeros(base) else 2
    # Of a number that has gone to its limit at infinity next to nothing is left; of a vector, a
    # vanishing share of the coordinates has not.
    beyond = base.exponents.map(lambda at: NEGLIGIBLE if at > 0 else NEVER)
    parts = [] if beyond == EXACT_ZERO else [replace(zero(value), remainder=beyond)]
    growing = [] if value.finite else [e for e in base.exponents.levels() if e > 0]
    near = [Patch(arithmetic.unsaturated(base, e), Fraction(0)) for e in growing]
    power: Tensor | None = None
    for k in range(orders + 1):
        even = behaviour if k % 2 == 0 else _opposite(behaviour)
        factor = replace(derivatives(seen, k), remainder=EXACT_ZERO)
        factor = with_parity(factor, base.parity.under(even))
        if power is None:
            parts += pieces(factor)
            power = rest
        else:
            parts += pieces(multiply(ctx, factor, power))
            power = multiply(ctx, power, rest)
        if rest.vanishes:
            break
    else:
        size = rest.exponents.maximum(rest.remainder)
        lost = size.map(lambda e, at: NEVER if at > 0 else (orders + 1) * e, base.exponents)
        parts.append(replace(zero(value), remainder=lost))
    return patches.with_patches(patches.inheriting(total(ctx, parts), value), *near)


def _opposite(behaviour: Behaviour) -> Behaviour:
    flipped: dict[Behaviour, Behaviour] = {"odd": "even", "even": "odd", "neither": "neither"}
    return flipped[behaviour]


def _has_zeros(value: Tensor) -> bool:
    return NEVER in value.exponents.levels()


def _base(value: Tensor) -> tuple[Tensor, Tensor]:
    """What does not vanish with the width, and the rest."""
    first = value.terms[0]
    if not value.exact or value.terms[1:]:
        first = replace(first, zeros=None)  # of the term, not of the value
    stays = first.exponents.map(lambda e: e if e >= 0 else NEVER)
    goes = first.exponents.map(lambda e: e if e < 0 else NEVER)
    if goes == EXACT_ZERO:
        rest = Tensor(value.terms[1:], value.remainder, value.axis, value.space)
        if not value.terms[1:]:
            rest = unknown_part(value)
        return Tensor((first,), EXACT_ZERO, value.axis, value.space), rest
    if stays == EXACT_ZERO:
        return zero(value), value
    mask = first.exponents.map(lambda e: float(e >= 0)).mask(1)
    base = replace(first, coefficient=jnp.where(mask, first.coefficient, 0), exponents=stays)
    moved = replace(first, coefficient=jnp.where(mask, 0, first.coefficient), exponents=goes)
    rest = Tensor((moved, *value.terms[1:]), value.remainder, value.axis, value.space)
    return Tensor((base,), EXACT_ZERO, value.axis, value.space), rest


def smooth(
    ctx: Context, rule: Piecewise, value: Tensor, fn: Callable[[Any], Any], behaviour: Behaviour
) -> Tensor:
    """A function with derivatives at exponent 0; ``rule`` gives its own value."""

    def derivatives(base: Tensor, k: int) -> Tensor:
        if k == 0:
            return rule(base)
        derived, factorial = fn, 1.0
        for order in range(1, k + 1):
            derived, factorial = arithmetic.derivative(derived), factorial * order
        flat = arithmetic.taylor(fn, base.dtype)[k] == 0
        exponents = base.exponents.map(
            lambda e: Fraction(0) if e == 0 or (e == NEVER and not flat) else NEVER
        )
        out = derived(jnp.asarray(base.coefficient)) / factorial
        if not exponents.uniform:
            out = jnp.where(exponents.mask(NEVER), 0, out)
        return tensor(out, exponents, EXACT_ZERO, base.axis, base.space)

    return expanded(ctx, value, derivatives, behaviour)


def power(
    ctx: Context, value: Tensor, p: Fraction, fn: Callable[..., Any], parity: Behaviour
) -> Tensor:
    """``value^p``; ``fn(x, q=q)`` is the power of a coefficient.

    ``(x + d)^p = x^p (1 + p d / x + ...)`` around the leading term, whatever its exponent. A small
    whole power is a product.
    """
    if p.denominator == 1 and 1 <= p <= 4 and (value.terms[1:] or not value.exact):
        return functools.reduce(functools.partial(multiply, ctx), [value] * int(p))
    # Near 0 a power may be of any size: what is unknown somewhere is unknown everywhere.
    value = patches.remainder_everywhere(value)
    if value.remainder == EXACT_ZERO and not value.terms[1:]:
        lead = arithmetic.power(ctx, value, p, functools.partial(fn, q=p))
        return with_parity(lead, value.parity.under(parity))
    # Where the leading term vanishes the value does not: there only whole powers have an expansion.
    first, rest = replace(value.terms[0], zeros=None), value.terms[1:]
    base = Tensor((first,), EXACT_ZERO, value.axis, value.space)
    inexact = replace(leading_term(value), terms=(first,))
    if p.denominator > 1 or p < 0:
        knowledge.not_zero(ctx, inexact, "A power of")
    lead = arithmetic.power(ctx, inexact, p, functools.partial(fn, q=p))
    lead = with_parity(replace(lead, remainder=EXACT_ZERO), first.parity.under(parity))
    change = Tensor(rest, value.remainder, value.axis, value.space)
    if not rest:
        change = unknown_part(value)
    parts, moved, binomial = pieces(lead), change, Fraction(1)
    for k in (1, 2):
        binomial *= (p - k + 1) / Fraction(k)
        factor = arithmetic.power(ctx, base, p - k, functools.partial(fn, q=p - k))
        behaviour = parity if k % 2 == 0 else _opposite(parity)
        scaled = arithmetic.linear(factor, functools.partial(operator.mul, float(binomial)))
        factor = with_parity(scaled, first.parity.under(behaviour))
        parts += pieces(multiply(ctx, factor, moved))
        moved = multiply(ctx, moved, change)
    size = change.exponents.maximum(change.remainder)

    def unknown(e: Exponent, d: Exponent) -> Exponent:
        if d == NEVER:
            return NEVER
        return d * p if e == NEVER else 3 * d + (p - 3) * e

    lost = first.exponents.map(unknown, size)
    parts.append(replace(zero(lead), remainder=lost))
    return total(ctx, parts)


def by_leading_term(
    ctx: Context, value: Tensor, function: Callable[[Tensor], Tensor], stand_in: float = 1
) -> Tensor:
    """A function that asks for the leading term, of a value some of whose first coefficients are 0.

    Of ``max(x n, 1)`` it hangs on the sign of ``x`` which term leads, and that is known in the run
    only. So the function is computed from the first term on and from the second on, either with a
    stand-in where the other holds, and chosen entry by entry. Numbers with a sampling error are
    never exactly 0. What is unknown of the one choice is unknown of both: so it is done only where
    fewer terms did not decide.
    """
    first = value.terms[0]
    if ctx.terms < _CHOSEN or not value.finite or not value.terms[1:] or first.stderr is not None:
        return function(value)
    shape, second = value.shape, value.terms[1].exponents
    possible = first.exponents.map(lambda e, f: float(NEVER not in (e, f)), second).mask(1)
    gone = np.broadcast_to(possible, shape) & (jnp.asarray(first.coefficient) == 0)
    known = value.constant
    if known is not None and not np.any(possible & (known == 0)):
        return function(value)
    rest = value.remainder.map(
        lambda r, e, f: NEVER if e != NEVER and f == NEVER else r, first.exponents, second
    )
    lower = Tensor(value.terms[1:], rest, value.axis, value.space)
    here = function(_replaced(value, gone, stand_in))
    lower = _replaced(lower, ~gone, stand_in)
    there = by_leading_term(ctx, lower, function, stand_in)
    return where(ctx, ~gone, (here, there), EVEN)


def _replaced(value: Tensor, mask: Any, number: float) -> Tensor:
    """A value with a number as its first coefficient where a mask holds, and nothing else there."""
    first, *others = value.terms
    new = jnp.where(first.exponents.mask(NEVER), 0, jnp.asarray(number, value.dtype))
    terms = [replace(first, coefficient=jnp.where(mask, new, first.coefficient))]
    terms += [replace(t, coefficient=jnp.where(mask, 0, t.coefficient)) for t in others]
    return replace(value, terms=tuple(terms))


# --- signs


def sign_of(ctx: Context, difference: Tensor, what: str = "") -> tuple[Any, Exponents, Parity]:
    """Sign of the first term that is not exactly zero, entry by entry.

    ``what`` is decided by it and must not hang on a tie; empty where that costs nothing.

    Returns: the signs; the remainder of a mask made of them, the share of coordinates whose sign
    the next term may change; the parity of the mask.
    """
    first = leading_term(difference)
    signs = jnp.sign(jnp.asarray(first.coefficient))
    parity = first.parity.under("neither")
    flips = _flips(difference, 0)
    hidden = patches.undecided(difference, first.exponents, signs == 0)
    tied = signs == 0
    if not first.parity.fresh:
        # Dead units, for instance: there the next term decides.
        for number, term in enumerate(difference.terms[1:], start=1):
            hidden = hidden | patches.undecided(difference, term.exponents, signs == 0)
            signs = jnp.where(signs == 0, jnp.sign(jnp.asarray(term.coefficient)), signs)
            parity = parity & term.parity.under("neither")
            flips = flips.maximum(_flips(difference, number))
        unknown = difference.remainder.map(lambda r: float(r != NEVER)).mask(1)
        tied = (signs == 0) & jnp.asarray(unknown)
        if first.zeros is not None and not difference.terms[1:]:
            tied = tied & ~first.zeros
    elif difference.terms[1:]:
        # Vectors of which no coordinate is zero may have cancelled: then others decide.
        others = [jnp.asarray(term.coefficient) != 0 for term in difference.terms[1:]]
        left = tied & functools.reduce(operator.or_, others)
        error = doubts.undecided(ctx, what or "The sign of a value", tied=True)
        ctx.check(~knowledge.beyond_accident(left, first), error)
    if not what:
        return signs, flips, parity
    doubts.decides(ctx, first, what)
    if not first.exact:
        left = tied if first.finite else tied | hidden
        error = doubts.undecided(ctx, what, tied=True)
        ctx.check(~knowledge.beyond_accident(left, first), error)
    return signs, flips, parity


def _flips(difference: Tensor, number: int) -> Exponents:
    """Share of the coordinates whose sign is not that of the term with this number."""
    if difference.finite:
        return EXACT_ZERO
    term = difference.terms[number]
    # Where a patch hides the term an earlier one decides; rare coordinates are counted apart.
    hiding = [id(patch) for patch in patches.hiding(difference, term.exponents)]
    seen = [p for p in difference.patches if p.mask is not None and id(p) not in hiding]
    first = leading_term(replace(difference, terms=difference.terms[number:], patches=tuple(seen)))
    return first.exponents.map(lambda e, r: NEVER if NEVER in (e, r) else r - e, first.remainder)


def where(ctx: Context, mask: Any, cases: tuple[Tensor, Tensor], parity: Parity) -> Tensor:
    """Choice entry by entry, term by term: the first case where the mask holds."""
    parts, found = [], []
    for case, other, chosen in zip(cases, cases[::-1], (mask, ~mask), strict=True):
        if other.vanishes and case.axis is not None and case.remainder != EXACT_ZERO:
            found.append(unknown_where(case, chosen))
            case = replace(case, remainder=EXACT_ZERO)
        for piece in pieces(case):
            term = replace(
                piece.terms[0],
                coefficient=jnp.where(chosen, piece.coefficient, jnp.zeros((), piece.dtype)),
                stderr=None if piece.stderr is None else jnp.where(chosen, piece.stderr, 0),
                zeros=_without(piece, chosen),
                parity=EVEN if piece.axis is None else piece.parity * parity,
            )
            parts.append(replace(piece, terms=(term,)))
    return patches.with_patches(total(ctx, parts), *found)


def unknown_where(value: Tensor, chosen: Any) -> Patch:
    """What is unknown of a vector, of which only some entries are chosen."""
    others = tuple(i for i in range(len(value.shape)) if i != value.axis)
    mask = jnp.any(jnp.broadcast_to(chosen, value.shape), others)
    return Patch(Fraction(0), value.remainder.max(), mask)


def _without(piece: Tensor, chosen: Any) -> Any:
    """Exact zeros of a vector of which only some coordinates are chosen."""
    if piece.axis is None:
        return None
    left = jnp.broadcast_to(~chosen, piece.shape)
    return left if piece.zeros is None else left | piece.zeros


def mask_of(holds: Any, flips: Exponents, parity: Parity, difference: Tensor) -> Tensor:
    """A mask that is wrong on a share ``n^flips`` of the coordinates, and where it is unknown."""
    mask = with_parity(
        tensor(holds, ORDER_ONE, EXACT_ZERO, difference.axis, difference.space), parity
    )
    rare = [patch.share for patch in difference.patches if patch.mask is None]
    share = max([flips.max(), *rare])
    if share == NEVER or mask.axis is None:
        return mask
    return patches.with_patches(mask, Patch(share, Fraction(0)))


def select_continuously(ctx: Context, mask: Tensor, cases: tuple[Tensor, Tensor]) -> Tensor:
    """Choice between values that agree where the sign changes that the mask tells.

    A wrong choice costs only second order.
    """
    out = where(ctx, jnp.asarray(mask.coefficient), cases, mask.parity)
    out = patches.inheriting(out, *cases)
    size = max(patches.bound_of(case) for case in cases)
    wrong = [Patch(p.share, size + p.share) for p in mask.patches]
    return patches.with_patches(out, *wrong)


def extremum(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
    """Maximum (side 1) or minimum (-1): continuous, so that a wrong choice costs second order."""
    difference = minus(ctx, a, b)
    signs, flips, parity = sign_of(ctx, difference)
    chosen = mask_of(signs * side >= 0, flips, parity, difference)
    return select_continuously(ctx, chosen, (a, b))


def plus_parity(values: Iterable[Any]) -> Parity:
    """Parity of a function of several vectors, of which nothing else is known."""
    parity = EVEN
    for value in values:
        if isinstance(value, Tensor) and value.axis is not None:
            for term in value.terms:
                parity = parity & term.parity.under("neither")
    return parity
