"""Decisions about numbers whose signs are not known within the sampling error: taken both ways.

Of many numbers some are near a threshold by accident. Where a sign is not known, a decision (a
truth value, an index, a rounded number) is taken as it falls, and its other outcomes are kept
beside it (``Facts.otherwise``). What is computed from it as a finite array is computed from these
as well, and an output that is another one then is refused. What goes on into vectors and matrices
does not keep them: there one decision is one of many, and falls otherwise with other particles.
Only where all numbers that decide are zero, or one is by symmetry, it is refused (``vain``).

What a vector decides must be known for most of its coordinates.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import NEXT_TERM_ADVICE, CancellationError, LimitError
from tplimit.interpreter.context import Context
from tplimit.values.sampling_errors import ORDINARY_SHARE, ORDINARY_SIGMAS, ZERO_SIGMAS
from tplimit.values.tensors import Doubt, Tensor, Value, knowing, with_coefficient

#: Which of the decisions of an array that are not sure fall otherwise: all, and every second one
#: (or two that compensate one another would not be seen).
_STRIDES = (1, 2)

#: Moment matching leaves of a mean that vanishes by symmetry at most this many of its errors.
_SYMMETRIC_SIGMAS = 1e-5

Axes = tuple[int, ...]
Run = Callable[[Sequence[Value]], list[Value]]


def unsure(value: Tensor, sigmas: float = ZERO_SIGMAS) -> Any:
    """Entries of a finite array of which the sign is not known, or None if all are.

    Of each entry the first term decides that is not exactly zero. What is positive whatever the
    errors of its factors and summands is known.
    """
    if not value.finite or all(term.stderr is None for term in value.terms):
        return None
    if value.parity.marginal.positive and value.parity.marginal.away:
        return None
    found, pending = jnp.zeros(value.shape, bool), jnp.ones(value.shape, bool)
    for term in value.terms:
        size = jnp.abs(jnp.asarray(term.coefficient))
        error = jnp.zeros(()) if term.stderr is None else jnp.asarray(term.stderr)
        found = found | (pending & (error > 0) & (size <= sigmas * error))
        pending = pending & (size == 0) & (error == 0)
    return found


def taken(
    ctx: Context, out: Tensor, other: Any, value: Tensor | None, what: str, axes: Axes = ()
) -> Tensor:
    """A decision ``out`` with its other outcomes, which are ``other`` where the sign of the value
    that decides (without these axes of the outcome; None: nothing is decided) is not known."""
    unknown = None if value is None else unsure(value)
    if value is None or unknown is None:
        return out
    vain = jnp.all(unsure(value, ORDINARY_SIGMAS)) | jnp.any(unsure(value, _SYMMETRIC_SIGMAS))
    unknown = jnp.expand_dims(unknown, axes)
    number = np.arange(int(np.prod(out.shape))).reshape(out.shape)
    outcomes = [
        jnp.where(unknown & (number % stride == 0), other, out.coefficient) for stride in _STRIDES
    ]
    cases = tuple(
        knowing(with_coefficient(out, array.astype(out.dtype)), generic=out.facts.generic)
        for array in outcomes
    )
    decision = knowing(out, otherwise=Doubt(cases, vain, undecided(ctx, what)))
    ctx.decisions.append(decision)
    return decision


def no_third(ctx: Context, distance: Tensor, what: str) -> None:
    """Require that a decision has no more than two outcomes within its error: no others are tried.

    ``distance`` is that of the numbers that decide from a third outcome.
    """
    hidden = unsure(distance)
    if hidden is not None:
        ctx.check(~jnp.any(hidden), undecided(ctx, what), doubt=True)


@contextmanager
def shown(ctx: Context, outputs: list[Value]) -> Iterator[None]:
    """Decisions that a rule takes, and whose outcomes its outputs do not show, must be sure."""
    before, ctx.decisions = ctx.decisions, []
    try:
        yield
        known = [out.facts.otherwise for out in outputs if isinstance(out, Tensor)]
        hidden = [d for d in ctx.decisions if all(d.facts.otherwise is not one for one in known)]
        settle(ctx, hidden, share=0)
    finally:
        ctx.decisions = before


def followed(ctx: Context, values: Sequence[Value], run: Run) -> list[Value]:
    """What is computed from values, with what it is for other outcomes of decisions before it."""
    outputs = run(values)
    found = [value.facts.otherwise for value in values if isinstance(value, Tensor)]
    known = [doubt for doubt in found if doubt is not None]
    finite = [isinstance(out, Tensor) and out.finite for out in outputs]
    if not all(finite):
        # A mask of a vector decides about all of it; of numbers that go into one it is one of many.
        settle(ctx, [v for v in values if isinstance(v, Tensor) and v.dtype.kind in "biu"])
        for doubt in known:
            ctx.check(~doubt.vain, doubt.error)
    if not known or not any(finite):
        return outputs
    with aside(ctx):
        try:
            cases = [run([outcome(v, number) for v in values]) for number in _NUMBERS]
        except LimitError:
            cases = []
    if not cases:
        settle(ctx, values)
        return outputs
    doubt = known[0]._replace(vain=functools.reduce(operator.or_, [d.vain for d in known]))

    def with_outcomes(out: Value, place: int) -> Value:
        if not isinstance(out, Tensor) or not out.finite:
            return out
        outcomes = tuple(outcome(case[place], number) for number, case in enumerate(cases))
        return knowing(out, otherwise=doubt._replace(outcomes=outcomes))

    return [with_outcomes(out, place) for place, out in enumerate(outputs)]


_NUMBERS = range(len(_STRIDES))


def outcome(value: Value, number: int) -> Any:
    """A value for other outcomes of decisions: itself, if it hangs on none."""
    if not isinstance(value, Tensor) or value.facts.otherwise is None:
        return value
    return value.facts.otherwise.outcomes[number]


def settle(ctx: Context, values: Sequence[Value], share: float = ORDINARY_SHARE) -> None:
    """Require that finite values hang on no decision that is not sure by more than a share."""
    for value in values:
        if not isinstance(value, Tensor) or value.facts.otherwise is None:
            continue
        doubt = value.facts.otherwise
        differ = functools.reduce(operator.or_, [_differ(value, o, share) for o in doubt.outcomes])
        ctx.check(~(differ & doubt.vain), doubt.error)
        ctx.check(~differ, doubt.error, doubt=True)


def _differ(value: Tensor, other: Tensor, share: float) -> Any:
    a, b = jnp.asarray(value.coefficient), jnp.asarray(other.coefficient)
    if value.dtype.kind != "f" or value.exponents != other.exponents:
        return jnp.any(a != b)
    # What is within the error of the value is known no better without any decision.
    error = 0.0 if value.stderr is None else ORDINARY_SIGMAS * value.stderr
    same = (jnp.abs(a - b) <= share * jnp.abs(a) + error) | (jnp.isnan(a) & jnp.isnan(b))
    return ~jnp.all(same)


@contextmanager
def aside(ctx: Context) -> Iterator[None]:
    """Interpret what need not hold."""
    checks, decisions = ctx.checks, ctx.decisions
    ctx.checks, ctx.decisions = [], []
    try:
        yield
    finally:
        ctx.checks, ctx.decisions = checks, decisions


def decides(ctx: Context, value: Tensor, what: str) -> None:
    """The sign of a value decides something: that of a vector must be known, see ``taken``."""
    if value.axis is not None and value.stderr is not None:
        ctx.check(mostly_known(value), undecided(ctx, what))


def mostly_known(value: Tensor) -> jax.Array:
    """Whether most coordinates of a vector are, for every index of its finite axes."""
    sigmas = ZERO_SIGMAS if value.exponents.max() > 0 else ORDINARY_SIGMAS
    known = jnp.abs(value.coefficient) > sigmas * value.stderr
    # Coordinates that are 0 without an error, on dead units, say nothing.
    silent = (value.coefficient == 0) & (value.stderr == 0)
    return jnp.all(jnp.sum(known, value.axis) >= jnp.sum(~known & ~silent, value.axis))


def undecided(
    ctx: Context, what: str, tied: bool = False, advice: str = NEXT_TERM_ADVICE
) -> LimitError:
    """The error of a choice that hangs on a coefficient that vanishes: within its error, or (where
    coefficients are ``tied``) exactly."""
    how = "equal, and the next terms are not known" if tied else "equal within the sampling error"
    return ctx.error(
        f"{what} is decided by terms that vanish: the leading coefficients are {how}.",
        CancellationError,
        advice,
    )
