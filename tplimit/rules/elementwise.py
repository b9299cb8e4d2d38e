"""Pointwise operations on finite arrays and vectors; linear ones also on matrices."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit import algebra, matrices
from tplimit._jax import log2_p, one_minus_square_p, primitives as p
from tplimit.errors import CancellationError, NoLimitError
from tplimit.interpret import RULES, Context
from tplimit.trace import Constant
from tplimit.values import Matrices, Tensor, Value, tensor
from tplimit.widths import NEVER, NONE, ZERO, Exponents, Size


@RULES(p.add_p, p.add_jaxvals_p)
def add(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Sum: the larger exponent leads, equal exponents add, the smaller joins the remainder."""
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.add(ctx, a, b)
    return algebra.add(ctx, a, b)


@RULES(p.sub_p)
def subtract(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Difference; ``x - x`` of one variable is exactly zero."""
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        if a is b and isinstance(b, Matrices):
            return b.map(lambda matrix: matrices.zero(matrix.rows, matrix.columns))
        return matrices.add(ctx, a, matrices.negative(ctx, b))
    return algebra.add(ctx, a, b, sign=-1)


@RULES(p.mul_p)
def multiply(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Product: exponents add."""
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.multiply(ctx, a, b)
    if a.axis is not None and b.axis is not None and a.axis != b.axis:
        return matrices.crossed(ctx, a, b)
    return algebra.multiply(ctx, a, b)


@RULES(p.div_p)
def divide(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Quotient: exponents subtract; the divisor's leading term must be known."""
    if isinstance(b, Matrices):
        ctx.fail("Division by a matrix, entry by entry.")
    if b.dtype.kind in "iu":
        return _integers(ctx, a, b)
    inverse = algebra.power(ctx, b, Fraction(-1), lambda x: 1 / jnp.asarray(x))
    if isinstance(a, Matrices):
        return matrices.multiply(ctx, a, inverse)
    out = algebra.multiply(ctx, a, inverse)
    # a / b rounds once where a * (1 / b) rounds twice.
    exact = ctx.rebind(a.coefficient, b.coefficient)
    return tensor(exact, out.exponents, out.remainder, out.axis, out.space, out.noise, out.zeros)


@RULES(p.neg_p)
def negate(ctx: Context, a: Value, **_: Any) -> Value:
    """Negation."""
    if isinstance(a, Matrices):
        return matrices.negative(ctx, a)
    return algebra.linear(a, lambda x: -x)


@RULES(p.convert_element_type_p, p.copy_p, p.reduce_precision_p)
def convert(ctx: Context, a: Value, **params: Any) -> Value:
    """Change of dtype: linear."""
    if isinstance(a, Matrices):
        return a
    dtype = params.get("new_dtype")
    if dtype is not None and a.dtype.kind == "f" and np.dtype(dtype).kind in "iu":
        _not_at_jump(ctx, a, 0.0)
    out = algebra.linear(a, ctx.rebind)
    if out.noise is not None and out.dtype.kind != "f":
        return tensor(out.coefficient, out.exponents, out.remainder, out.axis, out.space)
    return out


@RULES(p.stop_gradient_p, p.name_p, p.device_put_p, p.sharding_constraint_p)
def identity(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """Identity."""
    return list(values)


@RULES(p.integer_pow_p)
def integer_power(ctx: Context, a: Value, y: int) -> Value:
    """``a^y``: the exponent times ``y``."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a power, entry by entry,")
    if isinstance(y, Size):
        ctx.fail("A power that grows with the width.", NoLimitError)
    return algebra.power(ctx, a, Fraction(y), lambda x: lax.integer_pow(jnp.asarray(x), y))


@RULES(p.square_p)
def square(ctx: Context, a: Value, **_: Any) -> Value:
    """``a^2``."""
    return integer_power(ctx, a, 2)


@RULES(one_minus_square_p)
def one_minus_square(ctx: Context, a: Value, **_: Any) -> Value:
    """``1 - a^2``, the derivative of tanh: a difference, which cancels where tanh saturates."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "one_minus_square, entry by entry,")
    out = algebra.add(ctx, tensor(np.ones((), a.dtype)), integer_power(ctx, a, 2), sign=-1)
    return as_computed(ctx, a, out)


def as_computed(ctx: Context, a: Tensor, out: Tensor) -> Tensor:
    """The leading coefficient as the operation itself computes it where nothing scales.

    ``(1 + a) (1 - a)`` is precise near 1, where ``1 - a^2`` is not.
    """
    if not a.exponents == out.exponents == ZERO:
        return out
    first = replace(out.terms[0], coefficient=ctx.rebind(a.coefficient))
    return replace(out, terms=(first, *out.terms[1:]))


@RULES(p.sqrt_p)
def sqrt(ctx: Context, a: Value, **_: Any) -> Value:
    """Square root: half the exponent."""
    return _power(ctx, a, Fraction(1, 2), jnp.sqrt)


@RULES(p.rsqrt_p)
def rsqrt(ctx: Context, a: Value, **_: Any) -> Value:
    """Inverse square root."""
    return _power(ctx, a, Fraction(-1, 2), lambda x: lax.rsqrt(jnp.asarray(x)))


@RULES(p.cbrt_p)
def cbrt(ctx: Context, a: Value, **_: Any) -> Value:
    """Cube root: a third of the exponent."""
    return _power(ctx, a, Fraction(1, 3), jnp.cbrt)


@RULES(p.pow_p)
def general_power(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """``a^b`` with a constant exponent ``b`` (any, where ``a`` does not scale with the width)."""
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.unsupported(ctx, "a power, entry by entry,")
    constant = b.constant
    if constant is not None and constant.size and np.all(constant == constant.flat[0]):
        exponent = Fraction(float(constant.flat[0])).limit_denominator(1000)
        return _power(ctx, a, exponent, lambda x: jnp.power(x, jnp.asarray(b.coefficient)))
    axis, space = algebra.frame(ctx, a, b)
    levels = {*a.exponents.levels(), *b.exponents.levels()}
    if levels - {NEVER, Fraction(0)}:
        ctx.fail(
            "A power of values that scale with the width, with an exponent that is not constant.",
            NoLimitError,
        )
    remainder = a.remainder.maximum(b.remainder)
    return tensor(ctx.rebind(a.coefficient, b.coefficient), ZERO, remainder, axis, space)


def _power(ctx: Context, a: Value, exponent: Fraction, fn: Callable[[Any], Any]) -> Value:
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a power, entry by entry,")
    return algebra.power(ctx, a, exponent, fn)


# Smooth functions: primitive, function, limits at minus and plus infinity (None: there are none;
# an infinite one is refused when it occurs).
FUNCTIONS: list[tuple[Any, Callable[[Any], Any], tuple[float, float] | None]] = [
    (p.tanh_p, jnp.tanh, (-1.0, 1.0)),
    (p.logistic_p, lambda x: lax.logistic(jnp.asarray(x)), (0.0, 1.0)),
    (p.erf_p, lambda x: lax.erf(jnp.asarray(x)), (-1.0, 1.0)),
    (p.erfc_p, lambda x: lax.erfc(jnp.asarray(x)), (2.0, 0.0)),
    (p.atan_p, jnp.arctan, (-np.pi / 2, np.pi / 2)),
    (p.sin_p, jnp.sin, None),
    (p.cos_p, jnp.cos, None),
    (p.tan_p, jnp.tan, None),
    (p.sinh_p, jnp.sinh, None),
    (p.cosh_p, jnp.cosh, None),
    (p.asinh_p, jnp.arcsinh, None),
    (p.exp_p, jnp.exp, (0.0, np.inf)),
    (p.exp2_p, jnp.exp2, (0.0, np.inf)),
    (p.expm1_p, jnp.expm1, (-1.0, np.inf)),
    (p.log1p_p, jnp.log1p, None),
]


def _enter(primitive: Any, fn: Callable[[Any], Any], saturation: Any) -> None:
    name = primitive.name
    positive = primitive in (p.exp_p, p.exp2_p, p.logistic_p, p.cosh_p)

    def smooth(ctx: Context, a: Value, **_: Any) -> Value:
        if isinstance(a, Matrices):
            return matrices.unsupported(ctx, f"{name}, entry by entry,")
        out = algebra.apply_function(ctx, a, fn, name, saturation)
        if positive and out.noise is not None:
            # Whatever the error of its argument, the value is not zero.
            noise = jnp.minimum(out.noise, jnp.abs(out.coefficient) / 3)
            out = replace(out, terms=(replace(out.terms[0], noise=noise),))
        return out

    smooth.__name__ = name
    smooth.__doc__ = f"``{name}``: Taylor expansion at 0 for vanishing, limits for growing values."
    RULES(primitive)(smooth)


for _primitive, _fn, _saturation in FUNCTIONS:
    _enter(_primitive, _fn, _saturation)


#: Logarithms, with their functions.
LOGARITHMS = {p.log_p: jnp.log} | ({} if log2_p is None else {log2_p: jnp.log2})


@RULES(*LOGARITHMS)
def logarithm(ctx: Context, a: Value, **_: Any) -> Value:
    """Logarithm of a value that neither grows nor vanishes."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a logarithm, entry by entry,")
    if not algebra.order_one(a):
        ctx.fail(
            f"The logarithm of a value of order n^{a.exponents} is no power of the width.",
            NoLimitError,
        )
    algebra.known(ctx, a, "The logarithm")
    algebra.not_zero(ctx, a, "The logarithm of")
    assert ctx.equation is not None
    fn = LOGARITHMS[ctx.equation.primitive]
    noise = algebra.pointwise_noise(fn, a)
    return tensor(fn(a.coefficient), ZERO, a.remainder, a.axis, a.space, noise)


@RULES(p.abs_p)
def absolute(ctx: Context, a: Value, **_: Any) -> Value:
    """Absolute value: commutes with a positive scale."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "an absolute value, entry by entry,")
    return algebra.linear(a, jnp.abs)


@RULES(p.sign_p)
def sign(ctx: Context, a: Value, **_: Any) -> Value:
    """Sign of the leading term; near zero it flips on a vanishing share of coordinates."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a sign, entry by entry,")
    if a.vanishes:
        return a
    algebra.known(ctx, a, "sign")
    algebra.signs_known(ctx, a, "sign")
    exponents = a.exponents.map(lambda e: NEVER if e == NEVER else Fraction(0))
    return tensor(jnp.sign(a.coefficient), exponents, flips(a), a.axis, a.space, None, a.zeros)


def flips(difference: Tensor) -> Exponents:
    """Remainder of a mask: the share of coordinates whose sign the unknown part may change."""
    if difference.finite:
        return NONE
    return difference.exponents.map(
        lambda e, r: NEVER if r == NEVER or e == NEVER else r - e, difference.remainder
    )


@RULES(p.max_p)
def maximum(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Maximum: positively homogeneous, so it acts on the leading coefficients."""
    return _extremum(ctx, a, b, jnp.maximum, 1)


@RULES(p.min_p)
def minimum(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Minimum: positively homogeneous, so it acts on the leading coefficients."""
    return _extremum(ctx, a, b, jnp.minimum, -1)


def against_infinity(a: Tensor, b: Tensor, side: int) -> Tensor | None:
    """The maximum (side 1) or minimum (-1) where one side is a bound that bounds nothing."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    for bound, other in ((a, b), (b, a)):
        if algebra.infinite(bound) == -side and other.shape == shape:
            return other
    return None


def _extremum(ctx: Context, a: Value, b: Value, fn: Any, side: int) -> Value:
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.unsupported(ctx, "a maximum or minimum, entry by entry,")
    unbounded = against_infinity(a, b, side)
    if unbounded is not None:
        return unbounded
    axis, space = algebra.frame(ctx, a, b)
    exponents = a.exponents.maximum(b.exponents)
    lost = a.exponents.map(lambda x, y: min(x, y) if x != y else NEVER, b.exponents)
    x, y = algebra.aligned(a, exponents), algebra.aligned(b, exponents)
    out = fn(x, y)
    noise = None
    if a.noise is not None or b.noise is not None:
        zero = jnp.zeros(jnp.shape(out), jnp.result_type(out))
        noise = jnp.maximum(
            zero if a.noise is None else a.noise, zero if b.noise is None else b.noise
        )
    zeros = None
    if axis is not None:
        zeros = _extremum_zeros(a, b, x, y, side)
    remainder = a.remainder.maximum(b.remainder, lost)
    return tensor(out, exponents, remainder, axis, space, noise, zeros)


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


@RULES(p.clamp_p)
def clamp(ctx: Context, low: Value, a: Value, high: Value) -> Value:
    """Clamp: a minimum of a maximum."""
    return minimum(ctx, maximum(ctx, a, low), high)


@RULES(p.is_finite_p)
def is_finite(ctx: Context, a: Value, **_: Any) -> Value:
    """Whether a leading coefficient is finite."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "is_finite, entry by entry,")
    return tensor(jnp.isfinite(a.coefficient), ZERO, NONE, a.axis, a.space)


@RULES(p.floor_p, p.ceil_p, p.round_p)
def rounding(ctx: Context, a: Value, **_: Any) -> Value:
    """Rounding of a value of order 1 that is not at a jump."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "rounding, entry by entry,")
    assert ctx.equation is not None
    _not_at_jump(ctx, a, 0.5 if ctx.equation.primitive is p.round_p else 0.0)
    return tensor(ctx.rebind(a.coefficient), ZERO, flips(a), a.axis, a.space)


def _not_at_jump(ctx: Context, a: Tensor, offset: float) -> None:
    if not algebra.order_one(a):
        ctx.fail("Rounding a value that scales with the width.", NoLimitError)
    algebra.known(ctx, a, "Rounding")
    if a.noise is not None:
        shifted = jnp.asarray(a.coefficient) - offset
        gap = jnp.abs(shifted - jnp.round(shifted))
        error = ctx.error(
            "A value is rounded that is at a jump within its sampling error.", CancellationError
        )
        ctx.check(jnp.all(gap > algebra.ZERO_SIGMAS * a.noise), error)


@RULES(p.bitcast_convert_type_p)
def bits(ctx: Context, a: Value, new_dtype: Any) -> Value:
    """Bits of a number: of one that is not known exactly, or scales, the sign bit alone."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a bit pattern, entry by entry,")
    whole = a.exact and a.noise is None and algebra.order_one(a)
    if whole and not a.terms[1:]:
        return tensor(ctx.rebind(a.coefficient), ZERO, NONE, a.axis, a.space)
    if a.dtype.kind != "f" or not _sign_bit_alone(ctx):
        ctx.fail(
            "The bits of a number that is known up to a remainder or scales with the width.",
            NoLimitError,
            "Of such a number only the sign bit is known (jnp.signbit, jnp.copysign).",
        )
    return _bits_of_sign(ctx, a)


def _sign_bit_alone(ctx: Context) -> bool:
    """Whether nothing but the first bit of what the current equation gives is used."""
    assert ctx.equation is not None and ctx.program is not None
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
    assert isinstance(known, Tensor)
    zero = jnp.asarray(known.coefficient) == 0
    error = ctx.error(
        "The sign bit of a value that is exactly zero is an accident of rounding.",
        CancellationError,
        "Compare with 0: jnp.where(x < 0, ...), jnp.sign.",
    )
    accident = ~algebra.beyond_accident(zero, a.dtype) if a.axis is not None else ~jnp.any(zero)
    ctx.check(accident, error)
    return tensor(ctx.rebind(known.coefficient), ZERO, known.remainder, a.axis, a.space)


@RULES(
    p.and_p, p.or_p, p.xor_p, p.not_p, p.rem_p,
    p.shift_left_p, p.shift_right_arithmetic_p, p.shift_right_logical_p,
)  # fmt: skip
def discrete(ctx: Context, *operands: Value, **_: Any) -> Value:
    """Logical and rounding operations on values that do not scale with the width."""
    tensors = [value for value in operands if isinstance(value, Tensor)]
    if len(tensors) < len(operands):
        return matrices.unsupported(ctx, "a discrete operation, entry by entry,")
    axis, space = algebra.frame(ctx, *tensors)
    for value in tensors:
        if set(value.exponents.levels()) - {Fraction(0), NEVER}:
            ctx.fail("A discrete operation on a value that scales with the width.", NoLimitError)
        if not value.exact and value.dtype.kind == "f":
            algebra.known(ctx, value, "A discrete operation")
    remainder = tensors[0].remainder.maximum(*(value.remainder for value in tensors[1:]))
    return tensor(ctx.rebind(*(v.coefficient for v in tensors)), ZERO, remainder, axis, space)


def _integers(ctx: Context, a: Value, b: Tensor) -> Value:
    if isinstance(a, Matrices):
        ctx.fail("Integer division of a matrix.")
    return discrete(ctx, a, b)
