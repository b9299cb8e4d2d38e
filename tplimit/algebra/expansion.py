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
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic, knowledge
from tplimit.interpreter import doubts
from tplimit.interpreter.cancellation import HIDDEN, Balance, of_summands
from tplimit.interpreter.context import Context
from tplimit.values import patches
from tplimit.values.exponents import (
    EXACT_ZERO,
    HALF,
    NEVER,
    ORDER_ONE,
    Exponent,
    Exponents,
)
from tplimit.values.parity import EVEN, UNKNOWN, Parity, marginal_of_sum
from tplimit.values.rearranging import restricted
from tplimit.values.tensors import (
    Patch,
    Tensor,
    Term,
    knowing,
    leading_term,
    parity_of_unknown,
    tensor,
    with_parity,
)

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
    return symmetric(replace(zero(value), remainder=value.remainder), parity_of_unknown(value))


def symmetric(piece: Tensor, parity: Parity) -> Tensor:
    """A piece with these sign symmetries; if nothing of it is known, what is unknown has them."""
    out = with_parity(piece, parity)
    return knowing(out, unknown=parity) if out.exponents == EXACT_ZERO else out


def total(ctx: Context, parts: Sequence[Tensor]) -> Tensor:
    """Sum of values of one term: equal exponents add, the largest are kept, entry by entry.

    What cancels is left out; what round-off hides, below others that are kept or have cancelled, is
    unknown.
    """
    axis, space = arithmetic.common_axis(ctx, *parts)
    remainder = parts[0].remainder.maximum(*(part.remainder for part in parts[1:]))
    unknown = [(part.remainder, parity_of_unknown(part)) for part in parts]
    left = [part.exponents for part in parts]
    found: list[Patch] = []
    kept: list[tuple[Exponents, list[Tensor]]] = []
    below = False
    while (top := left[0].maximum(*left[1:])) != EXACT_ZERO:
        those = [part for part, e in zip(parts, left, strict=True) if _meet(e, top)]
        fate = _cancelled(ctx, those, top, axis, below)
        below = True
        if fate is not None:
            hidden = top.map(lambda t, m: t if m == HIDDEN else NEVER, fate)
            remainder = remainder.maximum(hidden)
            unknown += [(hidden, part.parity) for part in those]
            left = [e.map(lambda x, t, m: NEVER if m and x == t else x, top, fate) for e in left]
            continue
        if len(kept) == ctx.terms:
            dropped = [p for p, e in zip(parts, left, strict=True) if e != EXACT_ZERO]
            unknown += [(e, p.parity) for p, e in zip(parts, left, strict=True)]
            remainder, found = _lost(dropped, top, remainder)
            break
        kept.append((top, those))
        left = [e.map(lambda x, t: NEVER if x == t else x, top) for e in left]
    terms: list[Term] = []
    shape = np.broadcast_shapes(*(part.shape for part in parts))
    for top, those in kept:
        known = top.map(lambda e, r: e if e > r else NEVER, remainder)
        if known != EXACT_ZERO:
            # What is infinite is so beside every power of the width: it leads.
            others = [] if terms else [p for p in parts if all(p is not one for one in those)]
            terms.append(_added(top, known, those, shape, others))
        if known != top:
            unknown += [(part.exponents, part.parity) for part in those]
    if not terms:
        dtype = jnp.result_type(*(part.dtype for part in parts))
        terms.append(Term(jnp.zeros(shape, dtype), EXACT_ZERO, parity=EVEN))
    if len(terms) == 1 and remainder != EXACT_ZERO:
        # Zeros of a single term stand for zeros of the value, and there may be something else.
        terms = [replace(terms[0], zeros=None)]
    out = Tensor(tuple(terms), remainder, axis, space)
    return patches.with_patches(knowing(out, unknown=_symmetries(remainder, unknown)), *found)


def _symmetries(remainder: Exponents, parts: list[tuple[Exponents, Parity]]) -> Parity:
    """Of what is unknown of a sum, where parts of it have these exponents."""

    def counts(exponents: Exponents) -> bool:
        near = exponents.map(lambda e, r: float(e != NEVER and r - HALF < e <= r), remainder)
        return near.max() > 0

    those = [parity for exponents, parity in parts if counts(exponents)]
    return functools.reduce(operator.and_, those) if those else UNKNOWN


def _cancelled(
    ctx: Context, parts: list[Tensor], top: Exponents, axis: int | None, below: bool
) -> Exponents | None:
    """What becomes of the sum of the parts that have these exponents, `GONE`, `HIDDEN` or 0; None
    if nothing does."""
    if len(parts) == 1 or not all(jnp.issubdtype(p.dtype, jnp.floating) for p in parts):
        return None
    summands = [arithmetic.at_exponents(part, top) for part in parts]
    sure = all(part.stderr is None for part in parts)
    found = ctx.left_of(lambda: of_summands(summands, axis), axis, sure, below)
    return None if found is None else Exponents(found.astype(object))


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


def _added(
    top: Exponents,
    known: Exponents,
    parts: list[Tensor],
    shape: tuple[int, ...],
    others: Sequence[Tensor],
) -> Term:
    """One term: coefficients of the parts where they have the exponents ``top``, and what is
    infinite of others."""
    summands = [arithmetic.at_exponents(part, top) for part in parts]
    beyond = [arithmetic.infinities(part) for part in others]
    summands += [array for array in beyond if array is not None]
    coefficient = functools.reduce(operator.add, summands)
    coefficient = jnp.broadcast_to(coefficient, shape)
    stderrs = [arithmetic.stderr_at_exponents(part, top) for part in parts]
    stderr = arithmetic.combined_stderr(*stderrs)
    if stderr is not None:
        stderr = jnp.broadcast_to(stderr, shape)
    parities = [part.parity for part in parts]
    marginal = marginal_of_sum(parity.marginal for parity in parities)
    parity = replace(functools.reduce(operator.and_, parities), marginal=marginal)
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
        found.append(symmetric(product(x, y), parity_of_product(x, y)))
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
    if piece.exponents == EXACT_ZERO:
        return [unknown_sum(mean, parity)]
    if mean.exponents == EXACT_ZERO:
        return [mean]
    if space is None:
        # Constants along the width; draws of an earlier call, whose fluctuations are not known.
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
    both = lambda array: (sum_of(array), jnp.abs(sum_of(jnp.abs(array))))
    balance = Balance(both, [weighted], [None])
    found.append(arithmetic.less_cancelled(ctx, fluctuation, lambda: balance))
    return found


def unknown_sum(total: Tensor, parity: Parity) -> Tensor:
    """A sum over a width of what is unknown: smaller where that is odd in some source."""
    return replace(total, remainder=total.remainder + -HALF) if parity.vanishes else total


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
    flips = _flips(ctx, difference, 0)
    hidden = patches.undecided(difference, first.exponents, signs == 0)
    tied = signs == 0
    if not first.parity.fresh:
        # Dead units, for instance: there the next term decides.
        for number, term in enumerate(difference.terms[1:], start=1):
            hidden = hidden | patches.undecided(difference, term.exponents, signs == 0)
            signs = jnp.where(signs == 0, jnp.sign(jnp.asarray(term.coefficient)), signs)
            parity = parity & term.parity.under("neither")
            flips = flips.maximum(_flips(ctx, difference, number))
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


def _flips(ctx: Context, difference: Tensor, number: int) -> Exponents:
    """Share of the coordinates whose sign is not that of the term with this number."""
    if difference.finite:
        return EXACT_ZERO
    term = difference.terms[number]
    # Where a patch hides the term an earlier one decides; rare coordinates are counted apart.
    hiding = [id(patch) for patch in patches.hiding(difference, term.exponents)]
    seen = [p for p in difference.patches if p.mask is not None and id(p) not in hiding]
    first = leading_term(replace(difference, terms=difference.terms[number:], patches=tuple(seen)))
    return first.exponents.map(
        lambda e, r: NEVER if NEVER in (e, r) else ctx.flips(r - e), first.remainder
    )


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
            parts.append(symmetric(replace(piece, terms=(term,)), term.parity))
    return patches.with_patches(total(ctx, parts), *found)


def unknown_where(value: Tensor, chosen: Any) -> Patch:
    """What is unknown of a vector, of which only some entries are chosen."""
    others = tuple(i for i in range(len(value.shape)) if i != value.axis)
    shape = np.broadcast_shapes(np.shape(chosen), value.shape)
    mask = jnp.any(jnp.broadcast_to(chosen, shape), others)
    return Patch(Fraction(0), value.remainder.max(), mask)


def _without(piece: Tensor, chosen: Any) -> Any:
    """Exact zeros of a vector of which only some coordinates are chosen."""
    if piece.axis is None:
        return None
    left = jnp.broadcast_to(~chosen, np.broadcast_shapes(np.shape(chosen), piece.shape))
    return left if piece.zeros is None else left | piece.zeros


def mask_of(holds: Any, flips: Exponents, parity: Parity, difference: Tensor) -> Tensor:
    """A mask that is wrong on a share ``n^flips`` of the coordinates, and where it is unknown."""
    mask = with_parity(
        tensor(holds, ORDER_ONE, EXACT_ZERO, difference.axis, difference.space), parity
    )
    share = max([flips.max(), *(patch.share for patch in patches.rare(difference))])
    if share == NEVER or mask.axis is None:
        return mask
    return patches.with_patches(mask, Patch(share, Fraction(0)))


def select_continuously(
    ctx: Context, mask: Tensor, cases: tuple[Tensor, Tensor], apart: Exponent = math.inf
) -> Tensor:
    """Choice between values that agree where the sign changes that the mask tells.

    A wrong choice costs only second order: where it is made the cases differ by no more than
    ``n^apart``.
    """
    out = where(ctx, jnp.asarray(mask.coefficient), cases, mask.parity)
    out = patches.inheriting(out, *cases)
    size = max(patches.bound_of(case) for case in cases)
    wrong = [Patch(p.share, min(size + p.share, apart)) for p in mask.patches]
    return patches.with_patches(out, *wrong)


def extremum(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor:
    """Maximum (side 1) or minimum (-1): continuous, so that a wrong choice costs second order."""
    for number, other in ((a, b), (b, a)):
        won = above_all(number, other)
        if won:
            winner, loser = (number, other) if won == side else (other, number)
            bound = patches.bound_of(other)
            wrong = Patch(ctx.flips(bound - number.exponents.max()), bound)
            return patches.with_patches(add(ctx, winner, zero(loser)), wrong)
        between = _between(ctx, number, other, side)
        if between is not None:
            return between
    difference = minus(ctx, a, b)
    signs, flips, parity = sign_of(ctx, difference)
    chosen = mask_of(signs * side >= 0, flips, parity, difference)
    # Where what is lower has turned the sign of what leads it is the larger of the two.
    none = zero(difference).terms
    lower = patches.bound_of(replace(difference, terms=difference.terms[1:] or none))
    return select_continuously(ctx, chosen, (a, b), lower)


def _between(ctx: Context, a: Tensor, b: Tensor, side: int) -> Tensor | None:
    """The extremum of ``b`` and one to the other side of a bound and a vector that is larger than
    both: the vector is between them on a vanishing share of the coordinates only."""
    known = a.facts.extremum_of
    if known is None or known.axes or known.side == side:
        return None
    for vector, bound in (known.candidates, known.candidates[::-1]):
        size = max(patches.bound_of(bound), patches.bound_of(b))
        atoms = vector.zeros is not None or vector.parity.marginal.atoms
        if vector.finite or atoms or min(vector.exponents.levels()) <= size:
            continue
        knowledge.sign_known(ctx, replace(leading_term(vector), remainder=b.exponents), "A bound")
        signs, flips, parity = sign_of(ctx, minus(ctx, vector, b))
        first = mask_of(signs * side < 0, flips, parity, vector)
        cases = (add(ctx, b, zero(vector)), add(ctx, extremum(ctx, bound, b, side), zero(vector)))
        out = where(ctx, jnp.asarray(first.coefficient), cases, parity)
        out = patches.inheriting(out, *cases)
        unsure = (*first.patches, *patches.hiding(vector, vector.exponents))
        return patches.with_patches(out, *(Patch(p.share, size, p.mask) for p in unsure))
    return None


def above_all(number: Tensor, other: Tensor) -> int:
    """The sign of a constant beside which a vector vanishes, or grows less; else 0."""
    constant = number.constant
    if constant is None or constant.dtype.kind != "f" or other.finite:
        return 0
    if not (number.exact and number.exponents.uniform and np.all(np.isfinite(constant))):
        return 0
    grows_less = patches.bound_of(other) < number.exponents.max()
    signs = np.unique(np.sign(constant))
    return int(signs[0]) if grows_less and signs.size == 1 else 0


def plus_parity(values: Iterable[Any]) -> Parity:
    """Parity of a function of several vectors, of which nothing else is known."""
    parity = EVEN
    for value in values:
        if isinstance(value, Tensor) and value.axis is not None:
            for term in value.terms:
                parity = parity & term.parity.under("neither")
    return parity
