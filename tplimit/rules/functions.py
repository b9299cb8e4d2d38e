"""Smooth functions of one variable, and logarithms, entry by entry."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion, functions, knowledge
from tplimit.errors import LOGITS_ADVICE, CancellationError, NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.dependence import less_its_maximum
from tplimit.program.traits import Logarithm, Smooth
from tplimit.rules.entrywise import of_entries
from tplimit.rules.terms import leading_of, one_term_of, zero_with
from tplimit.values import patches
from tplimit.values.exponents import NEGLIGIBLE, NEVER, ORDER_ONE, Exponents
from tplimit.values.sampling_errors import ZERO_SIGMAS
from tplimit.values.tensors import Tensor, leading_term, tensor

_smooth = RULES.of_kind(Smooth)
_smooth.matrices(of_entries)


@_smooth.one
def function(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Taylor expansion at 0 for vanishing, limits for growing values."""
    kind = ctx.kind
    assert isinstance(kind, Smooth)
    return arithmetic.apply_function(ctx, a, kind, ctx.equation.primitive.name)


@_smooth.several
def function_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    kind = ctx.kind
    assert isinstance(kind, Smooth)
    fn = kind.function

    def of(x: Tensor) -> Tensor:
        return functions.smooth(ctx, lambda x: one_term_of(ctx, x), x, fn, kind.parity)

    if a.exponents.max() > 0:
        bounded_above = kind.limits is None or np.isfinite(kind.limits[1])
        out = functions.by_leading_term(ctx, a, of, 1 if bounded_above else -1)
    else:
        out = of(a)
    return zero_with(a, out) if arithmetic.taylor(fn)[0] == 0 else out


@RULES.rule_of(p.exp_p).several
def exponential_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Of differences from a maximum that grow nothing is left but 1 at the largest entry."""
    axis = None
    if a.finite and a.exponents.levels()[-1] > 0:
        axis = less_its_maximum(ctx.program, ctx.equation.inputs[0])
    if axis is None:
        return function_of_series(ctx, a)
    c = jnp.asarray(a.coefficient)
    largest = c == 0
    sure = jnp.sum(largest, axis) == 1
    if a.stderr is not None:
        below = jnp.where(largest, -jnp.inf, c + ZERO_SIGMAS * a.stderr)
        sure = sure & (jnp.max(below, axis) < 0)
    power = a.exponents.levels()[-1]
    tie = ctx.error(
        f"The logits of a softmax (or log-sum-exp) grow like n^{power}, and which of them is the "
        "largest is not known: two are equal within their sampling error.",
        CancellationError,
        "Raise samples= until their difference is larger than the error, or take another key. "
        + LOGITS_ADVICE,
    )
    ctx.check(jnp.all(sure), tie)
    return tensor(largest.astype(c.dtype), remainder=Exponents(NEGLIGIBLE))


_logarithm = RULES.of_kind(Logarithm)
_logarithm.matrices(of_entries)


@_logarithm.one
def logarithm(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Logarithm: that of ``c n^p`` is ``log c + p log n``, where ``log n`` has to cancel."""
    kind = ctx.kind
    assert isinstance(kind, Logarithm)
    if not arithmetic.order_one(a):
        return _with_log_n(ctx, a, kind, logarithm)
    knowledge.known(ctx, a, "The logarithm")
    knowledge.not_zero(ctx, a, "The logarithm of")
    stderr = arithmetic.pointwise_stderr(kind.function, a)
    return tensor(kind.function(a.coefficient), ORDER_ONE, a.remainder, a.axis, a.space, stderr)


@_logarithm.several
def logarithm_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    """Unlike the other functions it has no expansion at 0."""
    return functions.by_leading_term(ctx, a, lambda x: _logarithm_of_series(ctx, x))


def _logarithm_of_series(ctx: Context, a: Tensor, **_: Any) -> Tensor:
    kind = ctx.kind
    assert isinstance(kind, Logarithm)
    if not arithmetic.order_one(a):
        return _with_log_n(ctx, a, kind, _logarithm_of_series)
    simple = not a.terms[1:] and not a.patches
    if simple or a.exponents.levels() != [0]:
        return leading_of(ctx, a)
    lead = replace(leading_term(a), terms=(replace(a.terms[0], zeros=None),))
    knowledge.not_zero(ctx, lead, "The logarithm of")
    # Near 0 it may be of any size: what is unknown somewhere is unknown everywhere.
    a = patches.remainder_everywhere(a)
    return functions.smooth(ctx, lambda x: one_term_of(ctx, x), a, kind.function, "neither")


def _with_log_n(ctx: Context, a: Tensor, kind: Logarithm, rule: Callable[..., Tensor]) -> Tensor:
    """The logarithm of a value that grows or vanishes."""
    level = a.exponents.value if a.exponents.uniform else NEVER
    if level == NEVER:
        ctx.fail(
            f"The logarithm of a value of order n^{a.exponents} is no power of the width.",
            NoLimitError,
        )
    scale = tensor(np.ones((), a.dtype), Exponents(-level))
    rest = rule(ctx, expansion.times(ctx, a, scale))
    unit = kind.function(jnp.asarray(np.e, a.dtype))
    return expansion.plus(ctx, rest, tensor(float(level) * unit * ctx.log_n.astype(a.dtype)))
