"""Sums, products and powers, entry by entry; sums and finite factors of matrices, too."""

import functools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import one_minus_square_p, primitives as p
from tplimit.algebra import arithmetic, expansion, functions, knowledge
from tplimit.algebra.summands import Sums
from tplimit.errors import NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices, pairs
from tplimit.program.traits import Power
from tplimit.rules import inner
from tplimit.rules.discrete import discrete, stepped
from tplimit.rules.entrywise import of_entries
from tplimit.rules.terms import leading_of, linearly, zero_with
from tplimit.values.exponents import NEVER, ORDER_ONE, Size
from tplimit.values.parity import behaviour_of_power
from tplimit.values.tensors import Matrices, Tensor, Value, tensor


@RULES(p.add_p, p.add_jaxvals_p)
def add(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    """Sum: the larger exponent leads, equal exponents add, the smaller joins the remainder."""
    if _crossed(a, b):
        return matrices.crossed_sum(ctx, a, b)
    return _series(ctx).combined(a, b, 1, functools.partial(arithmetic.add, ctx))


@add.several
def add_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    if _crossed(a, b):
        return matrices.crossed_sum(ctx, a, b)
    return _series(ctx).combined(a, b, 1, functools.partial(_sum_of_series, ctx))


def _series(ctx: Context) -> Sums:
    return Sums(functools.partial(expansion.plus, ctx), expansion.negative, expansion.zero)


def _sum_of_series(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    (out,) = linearly(ctx, a, b)
    assert isinstance(out, Tensor)
    return out


def _crossed(a: Tensor, b: Tensor) -> bool:
    """Whether entries for all pairs of coordinates come out."""
    return a.axis is not None and b.axis is not None and a.axis != b.axis


@add.matrices
def add_matrices(ctx: Context, a: Value, b: Value, **params: Any) -> Matrices:
    # Of a number beside entries of another order it is asked whether it leads in networks.
    by_entries = isinstance(a, Tensor) is not isinstance(b, Tensor) and _of_pairs(a, b)
    if by_entries:
        return of_entries(ctx, a, b, **params)
    return _of_matrices(ctx).combined(a, b, 1, functools.partial(matrices.add, ctx))


def _of_matrices(ctx: Context) -> Sums:
    zero = lambda m: m.map(lambda matrix: matrices.zero(matrix.rows, matrix.columns))
    plus, negative = (functools.partial(f, ctx) for f in (matrices.add, matrices.negative))
    return Sums(plus, negative, zero)


def _of_pairs(*values: Value) -> bool:
    """Whether some operands are functions of pairs, and all matrices can be written as such."""
    items = [item for v in values if isinstance(v, Matrices) for item in v.items.flat]
    return any(map(pairs.has_pairs, items)) and all(map(pairs.known, items))


@RULES(p.sub_p)
def subtract(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    """Difference; ``x - x`` of one variable is exactly zero."""
    if _crossed(a, b):
        return matrices.crossed_sum(ctx, a, expansion.negative(b))
    return _series(ctx).combined(a, b, -1, functools.partial(arithmetic.add, ctx, sign=-1))


@subtract.several
def subtract_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    if _crossed(a, b):
        return matrices.crossed_sum(ctx, a, expansion.negative(b))
    if a.dtype.kind in "iub":
        return leading_of(ctx, a, b)
    return _series(ctx).combined(a, b, -1, functools.partial(expansion.minus, ctx))


@subtract.matrices
def subtract_matrices(ctx: Context, a: Value, b: Value, **_: Any) -> Matrices:
    minus = lambda a, b: matrices.add(ctx, a, matrices.negative(ctx, b))
    return _of_matrices(ctx).combined(a, b, -1, minus)


@RULES(p.mul_p)
def multiply(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    """Product: exponents add."""
    if _crossed(a, b):
        return matrices.crossed(ctx, a, b)
    return arithmetic.multiply(ctx, a, b)


@multiply.several
def multiply_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Value:
    if _crossed(a, b):
        return matrices.crossed(ctx, a, b)
    out = expansion.multiply(ctx, a, b)
    if a.axis is not None and b.axis is not None:
        return out
    return zero_with(b if a.axis is None else a, out)


@multiply.matrices
def multiply_matrices(ctx: Context, a: Value, b: Value, **params: Any) -> Matrices:
    """By numbers part by part; of two matrices of low rank, where that is enough, of low rank."""
    out = _product(ctx, a, b)
    return of_entries(ctx, a, b, **params) if out is None else out


def _product(ctx: Context, a: Value, b: Value) -> Matrices | None:
    """A product of matrices, or of a matrix and a number, without their entries, where it can be
    had and is enough."""
    out = matrices.multiply(ctx, a, b, inner.summed(ctx))
    both = isinstance(a, Matrices) and isinstance(b, Matrices)
    if out is not None or not both or not inner.summed_whole(ctx):
        return out
    assert isinstance(a, Matrices)
    assert isinstance(b, Matrices)
    return inner.product(ctx, a, b)


@RULES(p.div_p)
def divide(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Quotient: exponents subtract; the divisor's leading term must be known."""
    if b.dtype.kind in "iu":
        return discrete(ctx, a, b)
    out = arithmetic.multiply(ctx, a, _inverse(ctx, b))
    # a / b rounds once where a * (1 / b) rounds twice.
    exact = ctx.bind(p.div_p, a.coefficient, b.coefficient)
    return tensor(exact, out.exponents, out.remainder, out.axis, out.space, out.stderr, out.zeros)


def _inverse(ctx: Context, b: Tensor) -> Tensor:
    return arithmetic.power(ctx, b, Fraction(-1), lambda x: 1 / jnp.asarray(x))


@divide.several
def divide_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    if b.dtype.kind in "iu":
        return leading_of(ctx, a, b)
    return expansion.multiply(ctx, a, _powered(ctx, b, Fraction(-1)))


@RULES(p.rem_p)
def remainder(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """What a division leaves, ``a - b trunc(a / b)``; where it jumps the next term decides."""
    return _left(ctx, a, b, divide)


@remainder.several
def remainder_of_series(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return _left(ctx, a, b, divide_series)


def _left(ctx: Context, a: Tensor, b: Tensor, quotient: Callable[..., Tensor]) -> Tensor:
    if a.dtype.kind != "f":
        return discrete(ctx, a, b)
    plain = all(v.exact and v.stderr is None and not v.terms[1:] for v in (a, b))
    if plain and set(a.exponents.levels()) | set(b.exponents.levels()) == {0}:
        axis, space = arithmetic.common_axis(ctx, a, b)
        return tensor(ctx.rebind(a.coefficient, b.coefficient), axis=axis, space=space)
    ratio = quotient(ctx, a, b)
    if ratio.exponents.max() > 0:
        ctx.fail("The remainder of a division whose quotient grows with the width.", NoLimitError)
    whole = stepped(ctx, ratio, "trunc", a.dtype)
    return expansion.minus(ctx, a, expansion.times(ctx, b, whole))


@divide.matrices
def divide_matrices(ctx: Context, a: Value, b: Value, **params: Any) -> Matrices:
    if isinstance(b, Matrices) or b.axis is not None:
        return of_entries(ctx, a, b, **params)
    if b.dtype.kind in "iu":
        ctx.fail("Integer division of a matrix.")
    inverse = _inverse(ctx, b) if ctx.terms == 1 else _powered(ctx, b, Fraction(-1))
    out = matrices.multiply(ctx, a, inverse)
    assert out is not None
    return out


@RULES(p.neg_p)
def negate(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Negation."""
    return _series(ctx).negated(a)


@negate.several
def negate_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    return zero_with(a, _series(ctx).negated(a))


@negate.matrices
def negate_matrices(ctx: Context, a: Matrices, **_: Any) -> Value:
    return _of_matrices(ctx).negated(a)


# --- powers

_power = RULES.of_kind(Power)


def _exponent(ctx: Context, params: dict[str, Any]) -> Fraction:
    kind = ctx.kind
    assert isinstance(kind, Power)
    y = params["y"] if kind.exponent is None else kind.exponent
    if isinstance(y, Size):
        ctx.fail("A power that grows with the width.", NoLimitError)
    return Fraction(y)


@_power.one
def power(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    """``a^q``: the exponent times ``q``."""
    exponent, kind = _exponent(ctx, params), ctx.kind
    assert isinstance(kind, Power)
    if kind.function is not None:
        return arithmetic.power(ctx, a, exponent, kind.function)
    return integer_power(ctx, a, int(exponent))


def integer_power(ctx: Context, a: Tensor, y: int) -> Tensor:
    """``a^y``: the exponent times ``y``."""
    return arithmetic.power(ctx, a, Fraction(y), lambda x: lax.integer_pow(jnp.asarray(x), y))


@_power.matrices
def power_of_matrices(ctx: Context, a: Matrices, **params: Any) -> Matrices:
    """Whole powers: products, entry by entry, with itself."""
    exponent = _exponent(ctx, params)
    found: Matrices | None = a
    if exponent < 1 or exponent.denominator > 1:
        found = None
    for left in reversed(range(int(exponent) - 1)):
        low = functools.partial(matrices.multiply, low=inner.summed(ctx))
        found = None if found is None else (low if left else _product)(ctx, found, a)
    return of_entries(ctx, a, **params) if found is None else found


@_power.several
def power_of_series(ctx: Context, a: Tensor, **params: Any) -> Tensor:
    assert isinstance(ctx.kind, Power)
    return _powered(ctx, a, _exponent(ctx, params), ctx.kind.function)


def _powered(
    ctx: Context, value: Tensor, power: Fraction, function: Callable[[Any], Any] | None = None
) -> Tensor:
    """``value^power``, which is ``function`` of a coefficient where that is given."""

    def fn(x: Any, q: Fraction) -> Any:
        x = jnp.asarray(x)
        if q.denominator == 1:
            return lax.integer_pow(x, int(q))
        if function is None:
            return jnp.power(x, float(q))
        # Of a negative number there is a cube root.
        return jnp.where(
            x < 0, function(x) * lax.integer_pow(x, int(q - power)), jnp.power(x, float(q))
        )

    def powered(value: Tensor) -> Tensor:
        return functions.power(ctx, value, power, fn, behaviour_of_power(power))

    whole = power.denominator == 1 and power > 0
    return powered(value) if whole else functions.by_leading_term(ctx, value, powered)


@RULES(one_minus_square_p)
def one_minus_square(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """``1 - a^2``, the derivative of tanh: a difference, which cancels where tanh saturates."""
    out = arithmetic.add(ctx, tensor(np.ones((), a.dtype)), integer_power(ctx, a, 2), sign=-1)
    return as_computed(ctx, a, out)


@one_minus_square.several
def one_minus_square_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    square = _powered(ctx, a, Fraction(2))
    out = expansion.minus(ctx, tensor(np.ones((), a.dtype)), square)
    return as_computed(ctx, a, out)


def as_computed(ctx: Context, a: Tensor, out: Tensor) -> Tensor:
    """The leading coefficient as the operation itself computes it where nothing scales.

    ``(1 + a) (1 - a)`` is precise near 1, where ``1 - a^2`` is not.
    """
    if not a.exponents == out.exponents == ORDER_ONE:
        return out
    first = replace(out.terms[0], coefficient=ctx.rebind(a.coefficient))
    return replace(out, terms=(first, *out.terms[1:]))


@RULES(p.pow_p)
def general_power(ctx: Context, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """``a^b`` with a constant exponent ``b`` (any, where ``a`` does not scale with the width)."""
    constant = b.constant
    if constant is not None and constant.size and np.all(constant == constant.flat[0]):
        exponent = Fraction(float(constant.flat[0])).limit_denominator(1000)
        fn: Callable[[Any], Any] = lambda x: jnp.power(x, jnp.asarray(b.coefficient))
        return arithmetic.power(ctx, a, exponent, fn)
    axis, space = arithmetic.common_axis(ctx, a, b)
    levels = {*a.exponents.levels(), *b.exponents.levels()}
    if levels - {NEVER, Fraction(0)}:
        ctx.fail(
            "A power of values that scale with the width, with an exponent that is not constant.",
            NoLimitError,
        )
    knowledge.not_negative(ctx, a, "A power of a value that")
    remainder = a.remainder.maximum(b.remainder)
    stderr = arithmetic.pointwise_stderr(ctx.rebind, a, b)
    out = ctx.rebind(a.coefficient, b.coefficient)
    return tensor(out, ORDER_ONE, remainder, axis, space, stderr)


for _rule in (remainder, general_power, one_minus_square):
    _rule.matrices(of_entries)
