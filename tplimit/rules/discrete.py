"""Operations with jumps: conversions, rounding, bits, and logic."""

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic
from tplimit.errors import CancellationError, NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.tracing import Constant
from tplimit.program.traits import is_rounding
from tplimit.rules.terms import leading_of, linearly, unsupported, zero_with
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Exponents
from tplimit.values.tensors import Matrices, Tensor, tensor


@RULES(p.convert_element_type_p, p.reduce_precision_p)
def convert(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    """Change of dtype: linear, but for the conversion to integers, which is a rounding."""
    dtype = params.get("new_dtype")
    if dtype is not None and a.dtype.kind == "f" and np.dtype(dtype).kind in "iu":
        _not_at_jump(ctx, a, 0.0)
    out = arithmetic.linear(a, ctx.rebind)
    if out.stderr is not None and out.dtype.kind != "f":
        return tensor(out.coefficient, out.exponents, out.remainder, out.axis, out.space)
    return out


@convert.several
def convert_series(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    if is_rounding(ctx.equation):
        return leading_of(ctx, a)
    (out,) = linearly(ctx, a, **params)
    assert isinstance(out, Tensor)
    return zero_with(a, out)


@convert.matrices
def convert_matrices(ctx: Context, a: Matrices, **_: Any) -> Matrices:
    return unsupported(ctx, a) if is_rounding(ctx.equation) else a


def flips(difference: Tensor) -> Exponents:
    """Remainder of a mask: the share of coordinates whose sign the unknown part may change."""
    if difference.finite:
        return EXACT_ZERO
    return difference.exponents.map(
        lambda e, r: NEVER if r == NEVER or e == NEVER else r - e,
        difference.remainder,
    )


@RULES(p.sign_p)
def sign(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Sign of the leading term; near zero it flips on a vanishing share of coordinates."""
    if a.vanishes:
        return a
    arithmetic.known(ctx, a, "sign")
    arithmetic.signs_known(ctx, a, "sign")
    exponents = a.exponents.map(lambda e: NEVER if e == NEVER else Fraction(0))
    return tensor(jnp.sign(a.coefficient), exponents, flips(a), a.axis, a.space, None, a.zeros)


@RULES(p.is_finite_p)
def is_finite(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Whether a leading coefficient is finite."""
    return tensor(jnp.isfinite(a.coefficient), ORDER_ONE, EXACT_ZERO, a.axis, a.space)


@RULES(p.floor_p, p.ceil_p, p.round_p)
def rounding(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Rounding of a value of order 1 that is not at a jump."""
    _not_at_jump(ctx, a, 0.5 if ctx.equation.primitive is p.round_p else 0.0)
    return tensor(ctx.rebind(a.coefficient), ORDER_ONE, flips(a), a.axis, a.space)


def _not_at_jump(ctx: Context, a: Tensor, offset: float) -> None:
    if not arithmetic.order_one(a):
        ctx.fail("Rounding a value that scales with the width.", NoLimitError)
    arithmetic.known(ctx, a, "Rounding")
    if a.stderr is not None:
        shifted = jnp.asarray(a.coefficient) - offset
        gap = jnp.abs(shifted - jnp.round(shifted))
        error = ctx.error(
            "A value is rounded that is at a jump within its sampling error.", CancellationError
        )
        ctx.check(jnp.all(gap > arithmetic.ZERO_SIGMAS * a.stderr), error)


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
    accident = ~arithmetic.beyond_accident(zero, a.dtype) if a.axis is not None else ~jnp.any(zero)
    ctx.check(accident, error)
    return tensor(ctx.rebind(known.coefficient), ORDER_ONE, known.remainder, a.axis, a.space)


@RULES(
    p.and_p, p.or_p, p.xor_p, p.not_p, p.rem_p,
    p.shift_left_p, p.shift_right_arithmetic_p, p.shift_right_logical_p,
)  # fmt: skip
def discrete(ctx: Context, *operands: Tensor, **_: Any) -> Tensor:
    """Logical and rounding operations on values that do not scale with the width."""
    axis, space = arithmetic.common_axis(ctx, *operands)
    for value in operands:
        if set(value.exponents.levels()) - {Fraction(0), NEVER}:
            ctx.fail("A discrete operation on a value that scales with the width.", NoLimitError)
        if not value.exact and value.dtype.kind == "f":
            arithmetic.known(ctx, value, "A discrete operation")
    remainder = operands[0].remainder.maximum(*(value.remainder for value in operands[1:]))
    return tensor(ctx.rebind(*(v.coefficient for v in operands)), ORDER_ONE, remainder, axis, space)
