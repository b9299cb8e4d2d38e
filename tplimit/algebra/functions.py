"""Functions and powers of values of several terms: Taylor expansions around what leads."""

import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic, expansion, knowledge
from tplimit.interpreter.context import Context
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEGLIGIBLE, NEVER, Exponent
from tplimit.values.parity import Behaviour
from tplimit.values.tensors import Patch, Tensor, knowing, leading_term, tensor, with_parity

#: Terms from which on it is asked which of the known terms of a number leads.
_CHOSEN = 4


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
    parts = [] if beyond == EXACT_ZERO else [replace(expansion.zero(value), remainder=beyond)]
    growing = [] if value.finite else [e for e in base.exponents.levels() if e > 0]
    near = [Patch(arithmetic.unsaturated(base, e), Fraction(0)) for e in growing]
    power: Tensor | None = None
    for k in range(orders + 1):
        even = behaviour if k % 2 == 0 else _opposite(behaviour)
        factor = replace(derivatives(seen, k), remainder=EXACT_ZERO)
        factor = with_parity(factor, base.parity.under(even))
        if power is None:
            parts += expansion.pieces(factor)
            power = rest
        else:
            parts += expansion.pieces(expansion.multiply(ctx, factor, power))
            power = expansion.multiply(ctx, power, rest)
        if rest.vanishes:
            break
    else:
        size = rest.exponents.maximum(rest.remainder)
        lost = size.map(lambda e, at: NEVER if at > 0 else (orders + 1) * e, base.exponents)
        parts.append(replace(expansion.zero(value), remainder=lost))
    return patches.with_patches(patches.inheriting(expansion.total(ctx, parts), value), *near)


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
        rest = expansion.unknown_part(value)
        if value.terms[1:]:
            rest = _with_unknown_of(value, replace(rest, terms=value.terms[1:]))
        return Tensor((first,), EXACT_ZERO, value.axis, value.space), rest
    if stays == EXACT_ZERO:
        return expansion.zero(value), value
    mask = first.exponents.map(lambda e: float(e >= 0)).mask(1)
    base = replace(first, coefficient=jnp.where(mask, first.coefficient, 0), exponents=stays)
    moved = replace(first, coefficient=jnp.where(mask, 0, first.coefficient), exponents=goes)
    rest = Tensor((moved, *value.terms[1:]), value.remainder, value.axis, value.space)
    return Tensor((base,), EXACT_ZERO, value.axis, value.space), _with_unknown_of(value, rest)


def _with_unknown_of(value: Tensor, rest: Tensor) -> Tensor:
    """Some terms of a value, with what is unknown of it."""
    return knowing(rest, unknown=value.facts.unknown)


def smooth(
    ctx: Context,
    rule: expansion.Piecewise,
    value: Tensor,
    fn: Callable[[Any], Any],
    behaviour: Behaviour,
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
        return functools.reduce(functools.partial(expansion.multiply, ctx), [value] * int(p))
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
    change = expansion.unknown_part(value)
    if rest:
        change = _with_unknown_of(value, replace(change, terms=rest))
    parts, moved, binomial = expansion.pieces(lead), change, Fraction(1)
    for k in (1, 2):
        binomial *= (p - k + 1) / Fraction(k)
        if binomial == 0:
            return expansion.total(ctx, parts)
        factor = arithmetic.power(ctx, base, p - k, functools.partial(fn, q=p - k))
        behaviour = parity if k % 2 == 0 else _opposite(parity)
        scaled = arithmetic.linear(factor, functools.partial(operator.mul, float(binomial)))
        factor = with_parity(scaled, first.parity.under(behaviour))
        parts += expansion.pieces(expansion.multiply(ctx, factor, moved))
        moved = expansion.multiply(ctx, moved, change)
    size = change.exponents.maximum(change.remainder)

    def unknown(e: Exponent, d: Exponent) -> Exponent:
        if d == NEVER:
            return NEVER
        return d * p if e == NEVER else 3 * d + (p - 3) * e

    lost = first.exponents.map(unknown, size)
    parts.append(replace(expansion.zero(lead), remainder=lost))
    return expansion.total(ctx, parts)


def by_leading_term(
    ctx: Context, value: Tensor, function: Callable[[Tensor], Tensor], stand_in: float = 1
) -> Tensor:
    """A function that asks for the leading term, of a value some of whose first coefficients are 0.

    Of ``max(x n, 1)`` it hangs on the sign of ``x`` which term leads, and that is known in the run
    only. So the function is computed from the first term on and from the second on, either with a
    stand-in where the other holds, and chosen entry by entry. Numbers with a sampling error are
    never exactly 0. What is unknown of the one choice is unknown of both: so it is done only where
    fewer terms did not decide. Of a vector, such as ``min(n^(1/2) v, w)``, the coordinates where
    another case was chosen are known to be 0.
    """
    gone = _gone(ctx, value)
    if gone is None:
        return function(value)
    first, second = value.terms[0], value.terms[1].exponents
    rest = value.remainder.map(
        lambda r, e, f: NEVER if e != NEVER and f == NEVER else r, first.exponents, second
    )
    lower = Tensor(value.terms[1:], rest, value.axis, value.space, value.patches)
    here = function(_replaced(value, gone, stand_in))
    lower = _replaced(lower, ~gone, stand_in)
    there = by_leading_term(ctx, lower, function, stand_in)
    out = expansion.where(ctx, ~gone, (here, there), first.parity.under("even"))
    return patches.inheriting(out, here, there)


def _gone(ctx: Context, value: Tensor) -> Any:
    """Entries where the first coefficient of a value is 0 and the second leads; None if none."""
    first = value.terms[0]
    if not value.terms[1:]:
        return None
    if value.finite and (ctx.terms < _CHOSEN or first.stderr is not None):
        return None
    second = value.terms[1].exponents
    possible = first.exponents.map(lambda e, f: float(NEVER not in (e, f)), second).mask(1)
    if not value.finite:
        atoms = first.parity.marginal.atoms and first.zeros is not None
        return possible & jnp.asarray(first.zeros) if atoms else None
    known = value.constant
    if known is not None and not np.any(possible & (known == 0)):
        return None
    return np.broadcast_to(possible, value.shape) & (jnp.asarray(first.coefficient) == 0)


def _replaced(value: Tensor, mask: Any, number: float) -> Tensor:
    """A value with a number as its first coefficient where a mask holds, and nothing else there."""
    first, *others = value.terms
    new = jnp.where(first.exponents.mask(NEVER), 0, jnp.asarray(number, value.dtype))
    zeros = None if first.zeros is None else first.zeros & ~mask
    terms = [replace(first, coefficient=jnp.where(mask, new, first.coefficient), zeros=zeros)]
    terms += [replace(t, coefficient=jnp.where(mask, 0, t.coefficient)) for t in others]
    return replace(value, terms=tuple(terms))
