"""Operations with jumps: conversions, rounding, bits, and logic."""

from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion, knowledge
from tplimit.errors import CancellationError, NoLimitError
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.equations import Constant
from tplimit.program.traits import is_rounding
from tplimit.rules.entrywise import of_entries
from tplimit.rules.terms import leading_of, linearly, zero_with
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Exponents
from tplimit.values.parity import EVEN
from tplimit.values.rearranging import kept_entries
from tplimit.values.tensors import (
    MaskOfMatrices,
    Matrices,
    Tensor,
    knowing,
    leading_term,
    tensor,
    with_one_exponent,
    with_parity,
)

#: A value that is so many units of round-off from a jump may well be at it.
_ULPS = 8


@RULES(p.convert_element_type_p, p.reduce_precision_p)
def convert(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    """Change of dtype: linear, but for the conversion to integers, which is a rounding."""
    if _cuts(a, params):
        return stepped(ctx, a, "trunc", params["new_dtype"])
    return arithmetic.linear(a, ctx.rebind)


@convert.several
def convert_series(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    if _cuts(a, params):
        return stepped(ctx, a, "trunc", params["new_dtype"])
    if is_rounding(ctx.equation):
        if a.dtype.kind == "f":
            return leading_of(ctx, a)
        terms = [replace(term, coefficient=ctx.rebind(term.coefficient)) for term in a.terms]
        return zero_with(a, replace(a, terms=tuple(terms)))
    (out,) = linearly(ctx, a, **params)
    assert isinstance(out, Tensor)
    return zero_with(a, out)


@convert.matrices
def convert_matrices(ctx: Context, a: Matrices, **params: Any) -> Matrices:
    return of_entries(ctx, a, **params) if is_rounding(ctx.equation) else a


def _cuts(a: Tensor, params: dict[str, Any]) -> bool:
    """Whether a conversion cuts fractions off."""
    return a.dtype.kind == "f" and np.dtype(params.get("new_dtype", a.dtype)).kind in "iu"


def flips(ctx: Context, difference: Tensor) -> Exponents:
    """Remainder of a mask: the share of coordinates whose sign the unknown part may change."""
    if difference.finite:
        return EXACT_ZERO
    return difference.exponents.map(
        lambda e, r: NEVER if r == NEVER or e == NEVER else ctx.flips(r - e),
        difference.remainder,
    )


@RULES(p.sign_p)
def sign(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Sign of the leading term; near zero it flips on a vanishing share of coordinates."""
    if a.vanishes:
        return a
    knowledge.known(ctx, a, "sign")
    knowledge.sign_known(ctx, a, "sign")
    exponents = a.exponents.map(lambda e: NEVER if e == NEVER else Fraction(0))
    signs = jnp.sign(a.coefficient)
    out = tensor(signs, exponents, flips(ctx, a), a.axis, a.space, None, a.zeros)
    return doubts.taken(ctx, out, _opposite(signs), a, "sign")


def _opposite(signs: Any) -> Any:
    """The other signs; of a value that comes out as 0 one of the two."""
    return jnp.where(signs == 0, jnp.ones_like(signs), -signs)


@sign.several
def sign_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    if a.vanishes or (a.exact and not a.terms[1:]) or a.exponents.levels() == [NEVER]:
        return leading_of(ctx, a)
    signs, share, parity = expansion.sign_of(ctx, a, "sign")
    out = expansion.mask_of(signs, share, parity, a)
    return doubts.taken(ctx, out, _opposite(signs), a, "sign")


@RULES(p.is_finite_p)
def is_finite(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Whether a leading coefficient is finite."""
    out = tensor(jnp.isfinite(a.coefficient), ORDER_ONE, EXACT_ZERO, a.axis, a.space)
    return knowing(out, alike=a.axis is not None)


@is_finite.matrices
def is_finite_matrix(ctx: Context, a: Matrices, **_: Any) -> Matrices:
    """Whether all that a matrix is made of is finite."""
    found = jax.tree.map(jnp.isfinite, a)
    return MaskOfMatrices(found.items, found.axes)


@RULES(p.floor_p, p.ceil_p, p.round_p)
def rounding(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Rounding; where a value is at a jump its next term decides, and what grows stays as it is, up
    to a part of order 1 that has no limit."""
    return stepped(ctx, a, _STEPS[ctx.equation.primitive], a.dtype)


@rounding.several
def rounding_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    return stepped(ctx, a, _STEPS[ctx.equation.primitive], a.dtype)


Steps = Literal["floor", "ceil", "round", "trunc"]
_STEPS: dict[Any, Steps] = {p.floor_p: "floor", p.ceil_p: "ceil", p.round_p: "round"}


def stepped(ctx: Context, a: Tensor, steps: Steps, dtype: Any) -> Tensor:
    """A function with jumps at the integers (``round``: half-way between them; ``trunc``: at all
    but 0): told by the side of the nearest jump that the value is on.

    What grows is rounded to itself, up to a part of order 1 that has no limit.
    """
    if a.exponents.max() > 0:
        return _grown(ctx, a, steps, dtype)
    if a.remainder.max() > 0:
        ctx.fail("Rounding a value of which only the order is known.", CancellationError)
    here = a.exponents.mask(0)
    c = jnp.where(here, a.coefficient, jnp.zeros((), a.dtype))
    jump = jnp.floor(c) + 0.5 if steps == "round" else jnp.round(c)
    exponents = ORDER_ONE
    if steps == "trunc":
        jump = jnp.where(jump == 0, jnp.where(c < 0, -1, 1).astype(jump.dtype), jump)
    elif steps != "round":
        exponents = a.exponents.map(lambda e: Fraction(0) if e == 0 else NEVER)
    jumps = with_parity(tensor(jump, exponents, EXACT_ZERO, a.axis, a.space), EVEN)
    difference = _off(expansion.minus(ctx, a, jumps), jump, a)
    signs, share, parity = expansion.sign_of(ctx, difference, "Rounding")
    there, beyond = (_beside(jump, side, steps).astype(dtype) for side in (signs, _opposite(signs)))
    if ctx.terms > 1:
        out = expansion.mask_of(there, share, parity, difference)
    else:
        out = tensor(there, ORDER_ONE, share, a.axis, a.space)
    doubts.no_third(ctx, _to_second_jump(difference), "Rounding")
    return doubts.taken(ctx, out, beyond, difference, "Rounding")


def _to_second_jump(difference: Tensor) -> Tensor:
    """How far numbers are from the jump that is next to the nearest one."""
    first = with_one_exponent(leading_term(difference))
    at_jump = not arithmetic.order_one(first)
    off = jnp.zeros(first.shape) if at_jump else jnp.abs(jnp.asarray(first.coefficient))
    stderr = None if at_jump else first.stderr
    return tensor(1 - off, axis=first.axis, space=first.space, stderr=stderr)


def _grown(ctx: Context, a: Tensor, steps: Steps, dtype: Any) -> Tensor:
    """Entries that grow, and the others rounded."""
    if np.dtype(dtype).kind != "f":
        ctx.fail("Conversion to integers of a value that grows with the width.", NoLimitError)
    grows = a.exponents.map(lambda e: float(e > 0))
    large = [kept_entries(term, term.exponents.map(lambda e: float(e > 0))) for term in a.terms]
    rest = grows.map(lambda g, r: max(r, Fraction(0)) if g else NEVER, a.remainder)
    whole = Tensor(tuple(large), rest, a.axis, a.space)
    if grows.uniform:
        return expansion.total(ctx, expansion.pieces(whole))
    others = grows.map(lambda g: 1 - g)
    small = Tensor(
        tuple(kept_entries(term, others) for term in a.terms),
        a.remainder.map(lambda r, g: NEVER if g else r, grows), a.axis, a.space, a.patches,
    )  # fmt: skip
    return expansion.plus(ctx, whole, stepped(ctx, small, steps, dtype))


def _off(difference: Tensor, jump: Any, a: Tensor) -> Tensor:
    """How far a value is off its jump; round-off is no distance where more terms decide."""
    if a.exact and not a.terms[1:]:
        return difference
    first = difference.terms[0]
    close = jnp.abs(first.coefficient) <= _ULPS * jnp.finfo(a.dtype).eps * jnp.abs(jump)
    close = close & first.exponents.mask(0)
    first = replace(first, coefficient=jnp.where(close, 0, first.coefficient))
    return replace(difference, terms=(first, *difference.terms[1:]))


def _beside(jump: Any, signs: Any, steps: Steps) -> Any:
    """Values on the two sides of a jump, and at it."""
    if steps == "round":
        return jnp.where(signs > 0, jump + 0.5, jnp.where(signs < 0, jump - 0.5, jnp.round(jump)))
    below, above = jump - (signs < 0), jump + (signs > 0)
    if steps == "trunc":
        return jnp.where(jump > 0, below, above)
    return below if steps == "floor" else above


@RULES(p.bitcast_convert_type_p)
def bits(ctx: Context, a: Tensor, new_dtype: Any) -> Tensor:
    """Bits of a number: of one that is not known exactly, or scales, the sign bit alone."""
    whole = a.exact and a.stderr is None and arithmetic.order_one(a)
    if whole and not a.terms[1:]:
        return tensor(ctx.rebind(a.coefficient), ORDER_ONE, EXACT_ZERO, a.axis, a.space)
    if a.dtype.kind != "f" or not _sign_bit_alone(ctx):
        ctx.fail(
            "The bits of a number that is known up to a remainder or scales with the width.",
            NoLimitError,
            "Of such a number only the sign bit is known (jnp.signbit, jnp.copysign).",
        )
    return _bits_of_sign(ctx, a)


def _sign_bit_alone(ctx: Context) -> bool:
    """Whether nothing but the first bit of what the current equation gives is used."""
    (slot,) = ctx.equation.outputs
    last = 8 * np.dtype(ctx.equation.out_avals[0].dtype).itemsize - 1
    uses = [e for e in ctx.program.equations if slot in e.inputs]
    return slot not in ctx.program.outputs and all(
        e.primitive in (p.shift_right_arithmetic_p, p.shift_right_logical_p)
        and isinstance(e.inputs[1], Constant)
        and bool(np.all(e.inputs[1].fitted.coefficient == last))
        for e in uses
    )


def _bits_of_sign(ctx: Context, a: Tensor) -> Tensor:
    known = sign(ctx, a)
    zero = jnp.asarray(known.coefficient) == 0
    error = ctx.error(
        "The sign bit of a value that is exactly zero is an accident of rounding.",
        CancellationError,
        "Compare with 0: jnp.where(x < 0, ...), jnp.sign.",
    )
    ctx.check(~knowledge.beyond_accident(zero, a), error)
    here, there = (ctx.rebind(signs) for signs in (known.coefficient, _opposite(known.coefficient)))
    out = tensor(here, ORDER_ONE, known.remainder, a.axis, a.space)
    return doubts.taken(ctx, out, there, a, "The sign bit")


@RULES(
    p.and_p, p.or_p, p.xor_p, p.not_p,
    p.shift_left_p, p.shift_right_arithmetic_p, p.shift_right_logical_p,
)  # fmt: skip
def discrete(ctx: Context, *operands: Tensor, **_: Any) -> Tensor:
    """Logical and rounding operations on values that do not scale with the width."""
    axis, space = arithmetic.common_axis(ctx, *operands)
    for value in operands:
        if set(value.exponents.levels()) - {Fraction(0), NEVER}:
            ctx.fail("A discrete operation on a value that scales with the width.", NoLimitError)
        if not value.exact and value.dtype.kind == "f":
            knowledge.known(ctx, value, "A discrete operation")
    remainder = operands[0].remainder.maximum(*(value.remainder for value in operands[1:]))
    return tensor(ctx.rebind(*(v.coefficient for v in operands)), ORDER_ONE, remainder, axis, space)


for _rule in (sign, rounding, discrete):
    _rule.matrices(of_entries)
