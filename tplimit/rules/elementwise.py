"""Pointwise operations on finite arrays and vectors; linear ones also on matrices."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit import algebra, matrices
from tplimit._jax import primitives as p
from tplimit.errors import CancellationError, NoLimitError
from tplimit.interpret import RULES, Context
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
        return matrices.add(ctx, a, matrices.scaled(ctx, b, tensor(np.float32(-1))))
    return algebra.add(ctx, a, b, sign=-1)


@RULES(p.mul_p)
def multiply(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Product: exponents add."""
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.multiply(ctx, a, b)
    return algebra.multiply(ctx, a, b)


@RULES(p.div_p)
def divide(ctx: Context, a: Value, b: Value, **_: Any) -> Value:
    """Quotient: exponents subtract; the divisor's leading term must be known."""
    if isinstance(b, Matrices):
        ctx.fail("Division by a matrix, entry by entry.")
    if b.dtype.kind in "iu":
        return _integers(ctx, a, b)
    inverse = algebra.power(ctx, b, Fraction(-1), lambda x: 1 / x)
    if isinstance(a, Matrices):
        return matrices.multiply(ctx, a, inverse)
    out = algebra.multiply(ctx, a, inverse)
    # a / b rounds once where a * (1 / b) rounds twice.
    exact = a.coefficient / b.coefficient
    return tensor(exact, out.exponents, out.remainder, out.axis, out.space, out.noise, out.zeros)


@RULES(p.neg_p)
def negate(ctx: Context, a: Value, **_: Any) -> Value:
    """Negation."""
    if isinstance(a, Matrices):
        return matrices.scaled(ctx, a, tensor(np.float32(-1)))
    return algebra.linear(a, lambda x: -x)


@RULES(p.convert_element_type_p, p.copy_p, p.reduce_precision_p)
def convert(ctx: Context, a: Value, **params: Any) -> Value:
    """Change of dtype: linear."""
    if isinstance(a, Matrices):
        return a
    dtype = params.get("new_dtype")
    rounds = dtype is not None and a.dtype.kind == "f" and np.dtype(dtype).kind in "iu"
    if rounds and a.exponents not in (ZERO, NONE):
        ctx.fail("Rounding a value that scales with the width.", NoLimitError)
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


# Smooth functions: primitive, function, limits at minus and plus infinity (None: there are none).
_FUNCTIONS: list[tuple[Any, Callable[[Any], Any], tuple[float, float] | None]] = [
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
    (p.exp_p, jnp.exp, None),
    (p.exp2_p, jnp.exp2, None),
    (p.expm1_p, jnp.expm1, None),
    (p.log1p_p, jnp.log1p, None),
]


def _enter(primitive: Any, fn: Callable[[Any], Any], saturation: Any) -> None:
    name = primitive.name

    def smooth(ctx: Context, a: Value, **_: Any) -> Value:
        if isinstance(a, Matrices):
            return matrices.unsupported(ctx, f"{name}, entry by entry,")
        if primitive is p.exp_p:
            return _exponential(ctx, a, fn)
        return algebra.apply_function(ctx, a, fn, name, saturation)

    smooth.__name__ = name
    smooth.__doc__ = f"``{name}``: Taylor expansion at 0 for vanishing, limits for growing values."
    RULES(primitive)(smooth)


for _primitive, _fn, _saturation in _FUNCTIONS:
    _enter(_primitive, _fn, _saturation)


def _exponential(ctx: Context, a: Tensor, fn: Callable[[Any], Any]) -> Tensor:
    """``exp``: of a value going to minus infinity it is zero faster than any power of n."""
    if a.exponents.max() <= 0:
        return algebra.apply_function(ctx, a, fn, "exp", None)
    algebra.known(ctx, a, "exp")
    level = a.exponents.max()
    top = jnp.where(a.exponents.mask(level), a.coefficient, -1)
    ctx.check(
        jnp.all(top <= 0),
        ctx.error(f"exp of a value that grows like n^{level}.", NoLimitError),
    )
    raise ctx.error(
        f"exp of a value of order n^{level}.",
        NoLimitError,
        "Rescale the initialisation or the learning rate so that this value stays of order 1.",
    )


@RULES(p.log_p)
def logarithm(ctx: Context, a: Value, **_: Any) -> Value:
    """Logarithm of a value that neither grows nor vanishes."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "a logarithm, entry by entry,")
    if a.exponents != ZERO:
        ctx.fail(
            f"The logarithm of a value of order n^{a.exponents} is no power of the width.",
            NoLimitError,
        )
    algebra.known(ctx, a, "The logarithm")
    noise = None if a.noise is None else a.noise / jnp.abs(a.coefficient)
    return tensor(jnp.log(a.coefficient), ZERO, a.remainder, a.axis, a.space, noise)


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
    return tensor(jnp.sign(a.coefficient), exponents, _flips(a), a.axis, a.space, None, a.zeros)


def _flips(difference: Tensor) -> Exponents:
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


def _extremum(ctx: Context, a: Value, b: Value, fn: Any, side: int) -> Value:
    if isinstance(a, Matrices) or isinstance(b, Matrices):
        return matrices.unsupported(ctx, "a maximum or minimum, entry by entry,")
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


def _compare(primitive: Any, fn: Callable[[Any, Any], Any], same: bool) -> None:
    def comparison(ctx: Context, a: Value, b: Value) -> Value:
        if isinstance(a, Matrices) or isinstance(b, Matrices):
            return matrices.unsupported(ctx, "a comparison, entry by entry,")
        if a is b:
            axis, space = algebra.frame(ctx, a, b)
            return tensor(np.full(a.shape, same), ZERO, NONE, axis, space)
        return _compared(ctx, a, b, fn, primitive in (p.eq_p, p.ne_p))

    comparison.__name__ = primitive.name
    comparison.__doc__ = f"``{primitive.name}``: decided by the leading term of the difference."
    RULES(primitive)(comparison)


for _primitive, _relation, _same in [
    (p.gt_p, jnp.greater, False),
    (p.lt_p, jnp.less, False),
    (p.ge_p, jnp.greater_equal, True),
    (p.le_p, jnp.less_equal, True),
    (p.eq_p, jnp.equal, True),
    (p.ne_p, jnp.not_equal, False),
]:
    _compare(_primitive, _relation, _same)


def _compared(ctx: Context, a: Tensor, b: Tensor, fn: Any, equality: bool) -> Tensor:
    axis, space = algebra.frame(ctx, a, b)
    if a.exact and b.exact and a.exponents == b.exponents and a.noise is b.noise is None:
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ZERO, NONE, axis, space)
    if a.dtype.kind != "f":
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ZERO, NONE, axis, space)
    exponents = a.exponents.maximum(b.exponents)
    x, y = algebra.aligned(a, exponents), algebra.aligned(b, exponents)
    infinite = _infinite(a) or _infinite(b)
    difference = algebra.add(ctx, a, b, sign=-1) if not infinite else None
    if (
        (difference is not None and not difference.exact)
        or a.noise is not None
        or b.noise is not None
    ):
        _decided(ctx, a, b, difference, x, y, equality)
    remainder = NONE if difference is None else _flips(difference)
    return tensor(fn(x, y), ZERO, remainder, axis, space)


def _infinite(value: Tensor) -> bool:
    constant = value.constant
    return constant is not None and bool(np.all(np.isinf(constant)))


def _decided(
    ctx: Context, a: Tensor, b: Tensor, difference: Tensor | None, x: Any, y: Any, equality: bool
) -> None:
    """A comparison must be decided by known terms: never by a coefficient that vanishes."""
    if difference is None:
        return
    error = ctx.error(
        "A comparison is decided by terms that vanish: the leading coefficients are equal "
        "within the sampling error.",
        CancellationError,
        "The next term of the expansion in the width decides, which this version does not compute.",
    )
    if difference.axis is None:
        if not equality:
            ctx.check(algebra.significant(difference), error)
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
    ctx.check(~jnp.any(undecided), error)


@RULES(p.is_finite_p)
def is_finite(ctx: Context, a: Value, **_: Any) -> Value:
    """Whether a leading coefficient is finite."""
    if isinstance(a, Matrices):
        return matrices.unsupported(ctx, "is_finite, entry by entry,")
    return tensor(jnp.isfinite(a.coefficient), ZERO, NONE, a.axis, a.space)


@RULES(p.and_p, p.or_p, p.xor_p, p.not_p, p.rem_p, p.floor_p, p.ceil_p, p.round_p)
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


@RULES(p.select_n_p)
def select(ctx: Context, which: Value, *cases: Value) -> Value:
    """Choice by a mask; branches of unequal exponent keep the larger, the rest as remainder.

    A finite predicate whose value decides an exponent is computed before the run.
    """
    assert isinstance(which, Tensor)
    if which.finite:
        chosen = which.constant
        if chosen is None and _needs_decision(cases):
            assert ctx.equation is not None
            chosen = ctx.decided(ctx.equation.inputs[0])
            if chosen is None and not any(isinstance(case, Matrices) for case in cases):
                ctx.fail(
                    "Which power of the width a value has depends on a predicate that is not "
                    "known before the run.",
                    NoLimitError,
                )
        if chosen is not None and np.all(chosen == chosen.flat[0]):
            case = cases[int(chosen.flat[0])]
            return _shaped(ctx, case)
        if chosen is not None and not any(isinstance(case, Matrices) for case in cases):
            return _select_entries(ctx, np.asarray(chosen, dtype=int), cases)
    if any(isinstance(case, Matrices) for case in cases):
        return matrices.select(ctx, which, cases)
    return _select_mask(ctx, which, cases)


def _needs_decision(cases: tuple[Value, ...]) -> bool:
    if any(isinstance(case, Matrices) for case in cases):
        return False
    return len({case.exponents for case in cases if isinstance(case, Tensor)}) > 1


def _shaped(ctx: Context, case: Value) -> Value:
    return case


def _select_entries(ctx: Context, chosen: np.ndarray, cases: tuple[Value, ...]) -> Tensor:
    tensors = [case for case in cases if isinstance(case, Tensor)]
    axis, space = algebra.frame(ctx, *tensors)
    shape = tensors[0].shape
    picked = np.broadcast_to(chosen, shape)
    if axis is not None:
        picked = np.take(picked, [0], axis=axis)

    def choose(arrays: list[Exponents]) -> Exponents:
        full = [np.broadcast_to(e.array, picked.shape) for e in arrays]
        return Exponents(np.choose(picked, full))

    out = lax.select_n(
        jnp.broadcast_to(jnp.asarray(chosen, jnp.int32), shape),
        *(jnp.asarray(case.coefficient) for case in tensors),
    )
    exponents = choose([case.exponents for case in tensors])
    remainder = choose([case.remainder for case in tensors])
    return tensor(out, exponents, remainder, axis, space, _largest_noise(tensors))


def _largest_noise(cases: list[Tensor]) -> Any:
    noises = [case.noise for case in cases if case.noise is not None]
    return functools.reduce(jnp.maximum, noises) if noises else None


def _select_mask(ctx: Context, which: Tensor, cases: tuple[Value, ...]) -> Tensor:
    tensors = [case for case in cases if isinstance(case, Tensor)]
    axis, space = algebra.frame(ctx, which, *tensors)
    exponents = tensors[0].exponents.maximum(*(case.exponents for case in tensors[1:]))
    remainder = tensors[0].remainder.maximum(*(case.remainder for case in tensors[1:]))
    for case in tensors:
        lower = case.exponents.map(lambda e, top: e if e != top else NEVER, exponents)
        remainder = remainder.maximum(lower)
    if which.remainder != NONE:
        # Where the mask flips, one branch is taken for the other.
        remainder = remainder.maximum(exponents + which.remainder)
    arrays = [algebra.aligned(case, exponents) for case in tensors]
    out = ctx.rebind(which.coefficient, *(jnp.asarray(a, tensors[0].dtype) for a in arrays))
    zeros = None
    if axis is not None and any(c.zeros is not None or c.vanishes for c in tensors):
        masks = [
            jnp.ones(np.shape(out), bool) if case.vanishes
            else jnp.zeros(np.shape(out), bool) if case.zeros is None else case.zeros
            for case in tensors
        ]  # fmt: skip
        zeros = lax.select_n(jnp.broadcast_to(which.coefficient, np.shape(out)), *masks)
    return tensor(out, exponents, remainder, axis, space, _largest_noise(tensors), zeros)
