"""Sampling errors: how they pass through functions, and what becomes of those of vectors.

The error of a number tells how far it is from the truth. That of a vector tells whether it is
hidden, not how wide it is: it is that of its finite factors, the same for all coordinates. It is
carried along so that a vector decides nothing whose leading coefficient is an accident of the
particles: `e * u` where `e` is a mean that is 0 in truth, or `a * u - b * u` where `a` equals `b`
in truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tplimit.values.tensors import Tensor, Term, knowing

#: From this many standard errors on, a value that does not grow with the width differs from 0.
ORDINARY_SIGMAS = 2.0
#: The largest error, relative to the value, that does not hide it.
ORDINARY_SHARE = 0.1


def bounded(stderr: Any, size: Any) -> Any:
    """An error of what has this size: all of it where it is hidden, else at most a share.

    Errors are added up as if nothing damped them. Those of a training run would grow exponentially
    and hide all, whereas the motion of its particles does not: an accident is no larger than what
    it has added, and errors that hide nothing stay small. What is 0 on the dead units of a gate
    has none.
    """
    hidden = ORDINARY_SIGMAS * stderr > size
    return jnp.minimum(stderr, jnp.where(hidden, size, ORDINARY_SHARE * size))


def with_bounded_errors(value: Tensor) -> Tensor:
    """A vector with the errors of its coordinates bounded; numbers keep theirs."""
    if value.axis is None or all(term.stderr is None for term in value.terms):
        return value
    out = replace(value, terms=tuple(map(_bounded_term, value.terms)))
    return knowing(out, **value.facts._asdict())


def _bounded_term(term: Term) -> Term:
    if term.stderr is None:
        return term
    return replace(term, stderr=bounded(term.stderr, jnp.abs(term.coefficient)))


def summed_errors(
    pushed: Callable[..., Sequence[Any]], arrays: Sequence[Any], stderrs: Sequence[Any]
) -> list[Any]:
    """First-order errors of a function of arrays: ``sum_j |J_ij| e_j`` over all their entries.

    ``pushed(*changes)`` are the changes of its results, ``J`` times the changes of its operands.
    Whatever the errors have in common, the sum is no less than the error. None for all results if
    no operand has an error.
    """
    none = [jnp.zeros_like(array) for array in arrays]
    totals: list[Any] = []
    for place, stderr in enumerate(stderrs):
        if stderr is None:
            continue
        array = arrays[place]
        errors = jnp.broadcast_to(stderr, array.shape).reshape(-1)

        def share(number: Any, place: int = place, errors: Any = errors) -> list[Any]:
            unit = jnp.zeros_like(errors).at[number].set(errors[number])
            changes = [*none]
            changes[place] = unit.reshape(arrays[place].shape)
            return [jnp.abs(out) for out in pushed(*changes)]

        found = [jnp.sum(part, axis=0) for part in jax.lax.map(share, jnp.arange(array.size))]
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    return totals
