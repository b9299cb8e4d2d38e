"""Arithmetic of values ``n^e c + O(n^rho)``: sums, products, powers, functions, width averages."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.algebra import knowledge
from tplimit.errors import (
    LOGITS_ADVICE,
    NEXT_TERM_ADVICE,
    RESCALE_ADVICE,
    CancellationError,
    LimitWarning,
    NoLimitError,
)
from tplimit.gaussian import sampling
from tplimit.interpreter import doubts
from tplimit.interpreter.cancellation import Balance, of_summands
from tplimit.interpreter.context import Context
from tplimit.interpreter.zeros import share_below
from tplimit.program.traits import Smooth
from tplimit.values.exponents import (
    EXACT_ZERO,
    HALF,
    NEGLIGIBLE,
    NEVER,
    ORDER_ONE,
    SLOWLY,
    Exponent,
    Exponents,
    Size,
)
from tplimit.values.tensors import Tensor, leading_term, tensor, with_one_exponent

#: A term that only leads above this width does not lead in any network.
WIDTH_OF_NETWORKS = 1e6

#: Taylor terms tried at 0 before a function is called flat.
_TAYLOR_ORDER = 6


def common_axis(ctx: Context, *values: Tensor) -> tuple[int | None, int | None]:
    """Common width axis and space of operands that are combined coordinate by coordinate."""
    axes = {value.axis for value in values if value.axis is not None}
    if len(axes) > 1:
        ctx.fail("A function of all pairs of coordinates of two vectors, save sums and products.")
    space = ctx.spaces.unify(*(value.space for value in values))
    return (axes.pop() if axes else None), space


def _one_term(value: Tensor) -> Tensor:
    """The same value as this arithmetic knows it: what has further terms has a remainder."""
    return leading_term(value) if value.terms[1:] else value


def combined_stderr(*stderrs: Any) -> Any:
    """Error of a sum of terms whose errors have different sources."""
    known = [stderr for stderr in stderrs if stderr is not None]
    return functools.reduce(jnp.hypot, known) if known else None


def _warn_crossing(ctx: Context, leading: Tensor, other: Tensor) -> None:
    """A constant that leads only at absurd widths, such as Adam's ``eps`` against a gradient."""
    constant = leading.constant
    if constant is None or not (leading.exponents.uniform and other.exponents.uniform):
        return
    gap = leading.exponents.value - other.exponents.value
    if not 0 < gap < np.inf or not np.any(constant):
        return
    # The two sides are equal at the width n with n^gap = |other| / |constant|.
    ratio = jnp.mean(jnp.abs(jnp.asarray(other.coefficient))) / np.mean(np.abs(constant))
    level = other.exponents.value
    ctx.check(
        ratio <= WIDTH_OF_NETWORKS ** float(gap),
        ctx.error(
            f"The constant {float(np.mean(constant)):.3g} dominates a term of order n^{level} only "
            f"at widths above {WIDTH_OF_NETWORKS:.0e}: the formal limit is not the behaviour of "
            "networks that exist.",
            LimitWarning,
            f"Scale the constant with the width, by n**({level}).",
        ),
    )


def zero_mask(value: Tensor, shape: Any) -> Any:
    """Entries that are known to be exactly zero, or None."""
    if value.zeros is not None:
        return value.zeros
    return jnp.ones(shape, bool) if value.vanishes else None


def less_cancelled(ctx: Context, value: Tensor, balance: Callable[[], Balance]) -> Tensor:
    """A sum of one term, with exact zeros where it cancels."""
    if not jnp.issubdtype(value.dtype, jnp.floating) or value.exponents == EXACT_ZERO:
        return value
    mask = ctx.cancelling(balance, value.axis, sure=value.stderr is None)
    if mask is None:
        return value
    (term,) = value.terms
    stderr = None if term.stderr is None else jnp.where(mask, 0, term.stderr)
    exponents = term.exponents.map(lambda e, m: NEVER if m else e, Exponents(mask.astype(object)))
    coefficient = jnp.where(mask, jnp.zeros((), value.dtype), term.coefficient)
    term = replace(term, coefficient=coefficient, exponents=exponents, stderr=stderr)
    return replace(value, terms=(term,))


def add(ctx: Context, a: Tensor, b: Tensor, sign: int = 1) -> Tensor:
    """``a + sign b``. Equal exponents add; of unequal ones the smaller joins the remainder."""
    axis, space = common_axis(ctx, a, b)
    if a is b and sign < 0:
        return tensor(np.zeros(a.shape, a.dtype), EXACT_ZERO, EXACT_ZERO, axis, space)
    a, b = _one_term(a), _one_term(b)
    if b.vanishes and a.shape == np.broadcast_shapes(a.shape, b.shape):
        return tensor(a.coefficient, a.exponents, a.remainder, axis, space, a.stderr, a.zeros)
    for leading, other in ((a, b), (b, a)):
        _warn_crossing(ctx, leading, other)
    exponents = a.exponents.maximum(b.exponents)
    lost = a.exponents.map(lambda x, y: min(x, y) if x != y else NEVER, b.exponents)
    x, y = at_exponents(a, exponents), at_exponents(b, exponents)
    coefficient = x + y if sign > 0 else x - y
    remainder = a.remainder.maximum(b.remainder, lost)
    masks = zero_mask(a, jnp.shape(coefficient)), zero_mask(b, jnp.shape(coefficient))
    zeros = None if masks[0] is None or masks[1] is None else masks[0] & masks[1]
    if a.vanishes and b.vanishes:
        zeros = None
    stderr = combined_stderr(stderr_at_exponents(a, exponents), stderr_at_exponents(b, exponents))
    if stderr is not None:
        stderr = jnp.broadcast_to(stderr, jnp.shape(coefficient))
    total = tensor(coefficient, exponents, remainder, axis, space, stderr, zeros)
    return less_cancelled(ctx, total, lambda: of_summands([x, y if sign > 0 else -y], axis))


def stderr_at_exponents(value: Tensor, exponents: Exponents) -> Any:
    """Error of the coefficient that ``at_exponents`` gives."""
    if value.stderr is None or value.exponents == exponents:
        return value.stderr
    same = np.asarray(value.exponents.map(lambda a, b: a == b, exponents).array, dtype=bool)
    return jnp.where(same, value.stderr, 0) if same.any() else None


def at_exponents(value: Tensor, exponents: Exponents) -> Any:
    """Coefficient with zeros where the value is of lower order than ``exponents``.

    What is infinite, or no number, is so beside every power of the width.
    """
    if value.exponents == exponents:
        return value.coefficient
    same = np.asarray(value.exponents.map(lambda a, b: a == b, exponents).array, dtype=bool)
    if same.all():
        return value.coefficient
    beyond = infinities(value)
    if not same.any():
        return np.zeros(value.shape, value.dtype) if beyond is None else beyond
    # Masks stay masks.
    rest = jnp.zeros((), value.dtype) if beyond is None else beyond
    return jnp.where(same, value.coefficient, rest)


def infinities(value: Tensor) -> Any:
    """The entries of a finite array, or a constant, that are infinite or no numbers, and 0 for the
    others; None where it is known that there are none."""
    c, known = value.coefficient, value.constant
    if value.dtype.kind != "f" or (known is None and not value.finite):
        return None
    if known is not None:
        return None if np.all(np.isfinite(known)) else np.where(np.isfinite(known), 0, known)
    return jnp.where(jnp.isfinite(c), jnp.zeros((), value.dtype), c)


def product_exponents(a: Tensor, b: Tensor) -> tuple[Exponents, Exponents]:
    """Exponents and remainder of a product."""
    e, f, r, s = a.exponents, b.exponents, a.remainder, b.remainder
    return e + f, (e + s).maximum(r + f, r + s)


def multiply(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """``a b``: exponents add."""
    a, b = _one_term(a), _one_term(b)
    axis, space = common_axis(ctx, a, b)
    exponents, remainder = product_exponents(a, b)
    coefficient = a.coefficient * b.coefficient
    stderr = product_stderr(a, b, lambda x, y: x * y)
    masks = [value.zeros for value in (a, b) if value.zeros is not None]
    zeros = None
    if masks and axis is not None:
        zeros = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        zeros = jnp.broadcast_to(zeros, jnp.shape(coefficient))
    return tensor(coefficient, exponents, remainder, axis, space, stderr, zeros)


def product_stderr(a: Tensor, b: Tensor, bilinear: Callable[[Any, Any], Any]) -> Any:
    """First-order standard error of a bilinear function (an upper bound).

    Errors of factors add up: factors often are powers of one number.
    """
    first = None if a.stderr is None else bilinear(a.stderr, jnp.abs(b.coefficient))
    second = None if b.stderr is None else bilinear(jnp.abs(a.coefficient), b.stderr)
    return second if first is None else first if second is None else first + second


def pointwise_stderr(fn: Callable[..., Any], *values: Tensor) -> Any:
    """First-order standard error of a function that acts entry by entry."""
    arrays = [jnp.asarray(value.coefficient) for value in values]

    def share(place: int, stderr: Any) -> Any:
        alone = lambda x: fn(*arrays[:place], x, *arrays[place + 1 :])
        tangent = jnp.broadcast_to(stderr, arrays[place].shape)
        moved = jax.jvp(alone, (arrays[place],), (tangent,))[1]
        # Where a root is infinitely steep, at an exact zero, there is no error either.
        return jnp.where(tangent == 0, 0, jnp.abs(moved))

    noisy = [(place, value.stderr) for place, value in enumerate(values)]
    return combined_stderr(*(share(*one) for one in noisy if one[1] is not None))


def not_finite(value: Tensor) -> bool:
    """Whether it is a constant of NaN or infinite entries only."""
    constant = value.constant
    if constant is None or constant.dtype.kind != "f" or not constant.size:
        return False
    return not np.any(np.isfinite(constant))


def infinite(value: Tensor) -> int:
    """1 for a constant that is plus infinity everywhere, -1 for minus infinity, else 0."""
    constant = value.constant
    if not not_finite(value) or constant is None or np.any(np.isnan(constant)):
        return 0
    return int(np.sign(constant.flat[0])) if np.all(constant == constant.flat[0]) else 0


def order_one(value: Tensor) -> bool:
    """Whether every entry is of order 1 or exactly zero."""
    return all(level in (0, NEVER) for level in value.exponents.levels())


def power(ctx: Context, value: Tensor, p: Fraction, fn: Callable[[Any], Any]) -> Tensor:
    """``value^p`` with ``fn`` computing the power of the coefficient; exponents times ``p``."""
    value = _one_term(value)
    exponents = value.exponents.times(p)
    if p.denominator > 1:
        knowledge.not_negative(ctx, value, "A root of a value that")
    if p < 0:
        knowledge.known(ctx, value, "A division")
        knowledge.not_zero(ctx, value, "Division by")
        # An exact zero gives infinity, as everywhere.
        exponents = value.exponents.map(lambda e: Fraction(0) if e == NEVER else e * p)

    def left(e: Exponent, rho: Exponent) -> Exponent:
        if rho == NEVER:
            return NEVER
        if e == NEVER or (0 < p < 1 and value.finite):  # a root of an entry that happens to vanish
            return rho * p
        near = value.parity.marginal
        if 0 < p < 1 and rho < e and (near.atoms or near.order > 1 / p):
            # Near zeros of high order a root changes more than elsewhere: on average it vanishes.
            return e * p + max(rho - e, SLOWLY)
        return e * p + (rho - e)

    remainder = value.exponents.map(left, value.remainder)
    return tensor(
        fn(value.coefficient), exponents, remainder, value.axis, value.space,
        pointwise_stderr(fn, value), value.zeros if p > 0 else None,
    )  # fmt: skip


def linear(value: Tensor, fn: Callable[[Any], Any]) -> Tensor:
    """A linear function acting entry by entry: exponents stay."""
    value = _one_term(value)
    stderr = None if value.stderr is None else jnp.abs(fn(value.stderr))
    return tensor(
        fn(value.coefficient), value.exponents, value.remainder, value.axis, value.space,
        stderr, value.zeros,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def taylor(fn: Callable[[Any], Any], dtype: Any = jnp.float32) -> tuple[float, ...]:
    """Taylor coefficients of ``fn`` at 0, order 0 to ``_TAYLOR_ORDER``, in the given precision."""
    coefficients, derived, factorial = [], fn, 1.0
    with jax.ensure_compile_time_eval():
        for order in range(_TAYLOR_ORDER + 1):
            factorial *= max(order, 1)
            coefficients.append(float(derived(jnp.asarray(0.0, dtype))) / factorial)
            derived = derivative(derived)
    return tuple(coefficients)


def derivative(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The derivative of a function that acts entry by entry."""
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def apply_function(ctx: Context, value: Tensor, smooth: Smooth, name: str) -> Tensor:
    """A smooth function, entry by entry.

    At exponent 0 it acts on the coefficient; below, its Taylor expansion at 0 gives the first
    non-vanishing term; above, it goes to its limits at plus and minus infinity, if it has them.
    """
    value = _one_term(value)
    if value.remainder.max() > 0 and value.exponents.max() <= 0:
        ctx.fail(f"{name} of a value whose unknown part grows.", CancellationError)
    levels = value.exponents.levels()
    parts = [(level, _at_level(ctx, value, smooth, name, level)) for level in levels]
    if len(parts) == 1:
        return parts[0][1]
    return _assembled(value, parts)


def _kept_zeros(fn: Callable[[Any], Any], value: Tensor) -> Any:
    return value.zeros if value.zeros is not None and taylor(fn)[0] == 0 else None


def _at_level(ctx: Context, value: Tensor, smooth: Smooth, name: str, level: Exponent) -> Tensor:
    """The function where the value has this exponent."""
    fn, c, rho = smooth.function, value.coefficient, value.remainder
    if level == 0:
        if smooth.least is not None and value.finite and value.stderr is not None:
            above = tensor(c - smooth.least, stderr=value.stderr)
            knowledge.not_negative(
                ctx, above, f"{name} of a value whose distance from {smooth.least:g}"
            )
        stderr, zeros = pointwise_stderr(fn, value), _kept_zeros(fn, value)
        return tensor(fn(c), ORDER_ONE, rho, value.axis, value.space, stderr, zeros)
    if level > 0:
        return _saturated(ctx, value, smooth, name, level)
    series = taylor(fn, value.dtype if value.dtype == jnp.float64 else jnp.float32)
    if not np.all(np.isfinite(series)):
        ctx.fail(
            f"{name} of a value that vanishes like n^{level} has no expansion at 0.", NoLimitError
        )
    orders = [k for k, a in enumerate(series) if a != 0]
    if not orders:
        ctx.fail(f"{name} is flat at 0 up to order {_TAYLOR_ORDER}.", CancellationError)
    first = orders[0]
    second = orders[1] if len(orders) > 1 else _TAYLOR_ORDER + 1
    if level == NEVER:
        exponents = ORDER_ONE if first == 0 else EXACT_ZERO
        known_rest: Exponent = NEVER
    else:
        exponents, known_rest = Exponents(first * level), second * level
    # The unknown part enters with the derivative, of relative order (first - 1) or (second - 1).
    factor = max(first, 1) - 1
    if first == 0:
        factor = second - 1
    slope: Exponent = Fraction(0) if factor == 0 else factor * level
    remainder = (rho + slope).maximum(known_rest)

    def leading(x: Any) -> Any:
        return jnp.asarray(series[first], jnp.result_type(x)) * x**first

    stderr = None if first == 0 else pointwise_stderr(leading, value)
    zeros = value.zeros if first > 0 else None
    return tensor(leading(c), exponents, remainder, value.axis, value.space, stderr, zeros)


def _saturated(ctx: Context, value: Tensor, smooth: Smooth, name: str, level: Exponent) -> Tensor:
    """The function where the value grows: its limits, if there are any."""
    error = ctx.error(
        f"{name} of a value that grows like n^{level} has no limit.", NoLimitError, RESCALE_ADVICE
    )
    if smooth.limits is None:
        return ctx.refuse_later(value, error, knowledge.significant(value))
    others = value.remainder.map(lambda r, e: r if e == level else NEVER, value.exponents)
    knowledge.known(ctx, replace(value, remainder=others), name)
    what = f"{name} of what grows like n^{level} saturates: its limit"
    low, high = smooth.limits
    advice = NEXT_TERM_ADVICE if np.isfinite(high) else f"{LOGITS_ADVICE} {NEXT_TERM_ADVICE}"
    knowledge.sign_known(ctx, value, what, advice)
    unknown = doubts.unsure(value)
    c, mask = jnp.asarray(value.coefficient), value.exponents.mask(level)
    if unknown is not None:
        ctx.check(~jnp.any(unknown & mask), doubts.undecided(ctx, what, advice=advice))
    if not np.isfinite(high):
        ctx.check(~jnp.any((c > 0) & mask), error)
    if value.finite and not value.exact:
        ctx.check(~jnp.any((c == 0) & mask), doubts.undecided(ctx, name, tied=True, advice=advice))
    ends = jnp.where(c > 0, jnp.asarray(high, c.dtype), jnp.asarray(low, c.dtype))
    # A coordinate that is exactly zero does not grow.
    out = jnp.where(c == 0, smooth.function(jnp.zeros((), c.dtype)), ends)
    zeros = value.coefficient < 0 if low == 0 and value.axis is not None else None
    exponents = EXACT_ZERO if low == high == 0 else ORDER_ONE
    beyond = Exponents(NEGLIGIBLE if value.finite else unsaturated(value, level))
    return tensor(out, exponents, beyond, value.axis, value.space, None, zeros)


def unsaturated(value: Tensor, level: Exponent) -> Exponent:
    """Exponent of the share of coordinates that do not grow where a vector grows like n^level.

    It is -level where the coordinates have a density at 0, and more for a square, say, or a product
    (``interpreter/zeros.py``). Coordinates that are exactly 0 are no part of it.
    """
    return share_below(-level, value.parity.marginal.order)


def _assembled(value: Tensor, parts: Sequence[tuple[Exponent, Tensor]]) -> Tensor:
    """Results at the different exponents put together entry by entry."""
    coefficient, stderr = parts[0][1].coefficient, parts[0][1].stderr
    exponents, remainder = parts[0][1].exponents, parts[0][1].remainder
    for level, part in parts[1:]:
        mask = value.exponents.mask(level)
        coefficient = jnp.where(mask, part.coefficient, coefficient)
        if stderr is not None or part.stderr is not None:
            zero = jnp.zeros((), jnp.result_type(coefficient))
            own = zero if part.stderr is None else part.stderr
            stderr = jnp.where(mask, own, zero if stderr is None else stderr)
        static = Exponents(mask.astype(object))
        exponents = static.map(lambda m, new, old: new if m else old, part.exponents, exponents)
        remainder = static.map(lambda m, new, old: new if m else old, part.remainder, remainder)
    return tensor(coefficient, exponents, remainder, value.axis, value.space, stderr)


def width_factor(ctx: Context, size: Size) -> tuple[float, Fraction]:
    """A sum over a width is this coefficient times the mean, at this additional exponent."""
    if size.power != 1:
        ctx.fail(f"A sum over an axis of length {size}, which is not a width.")
    return ctx.scale(float(size.ratio), Fraction(1))


def sum_exponents(ctx: Context, exponents: Exponents, remainder: Exponents, gain: Fraction) -> Any:
    """Exponents and remainder of a width sum: mean at ``e + 1``, fluctuations at ``e + 1/2``."""
    if ctx.exact:
        return exponents, remainder
    return exponents + gain, (remainder + gain).maximum(exponents + gain * HALF)


def share(value: Tensor, axes: tuple[int, ...]) -> Any:
    """Sampling error of a vector relative to its size, over the given axes.

    Errors of vectors come from finite factors, which are the same for all coordinates; so a sum
    over the width has the relative error of its summands, not the sum of their absolute errors.
    """
    if value.stderr is None:
        return 0.0
    c = jnp.asarray(value.coefficient)
    size = jnp.sum(c * c, axis=axes)
    error = jnp.sum(jnp.broadcast_to(value.stderr, c.shape) ** 2, axis=axes)
    return jnp.sqrt(error / jnp.where(size > 0, size, 1))


def width_sum(ctx: Context, value: Tensor, size: Size, keepdims: bool = False) -> Tensor:
    """Sum over the width axis: the law of large numbers (Master Theorem, Yang, TP III).

    The standard error of the mean over particles is kept as stderr, to tell a coefficient that
    vanishes from one that does not.
    """
    value = _one_term(value)
    value = with_one_exponent(value) if _varies_along(value) else value
    factor, gain = width_factor(ctx, size)
    c = jnp.asarray(value.coefficient)
    if c.dtype.kind in "bui":
        c = c.astype(jnp.result_type(float))
    axis = value.axis
    assert axis is not None
    coefficient = factor * jnp.mean(c, axis=axis)
    stderr = None
    if not ctx.exact:
        stderr = abs(factor) * sampling.error_of_mean(c, axis)
        if value.stderr is not None:
            stderr = stderr + share(value, (axis,)) * jnp.abs(coefficient)
    exponents, remainder = _dropped(value.exponents, axis), _dropped(value.remainder, axis)
    exponents, remainder = sum_exponents(ctx, exponents, remainder, gain)
    return tensor(coefficient, exponents, remainder, None, None, stderr)


def _varies_along(value: Tensor) -> bool:
    return not value.exponents.uniform and value.exponents.array.ndim != len(value.shape)


def _dropped(exponents: Exponents, axis: int) -> Exponents:
    if exponents.uniform:
        return exponents
    return Exponents(np.take(exponents.array, 0, axis=axis))
