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

#: A number counts as zero when it is below this many of its standard errors.
ZERO_SIGMAS = 5.0
#: From this many standard errors on, a vector that does not grow with the width differs from 0.
ORDINARY_SIGMAS = 2.0
#: The largest error, relative to the value, that does not hide it.
ORDINARY_SHARE = 0.1

#: Random signs of the errors of entries: they tell the error of a result to an eighth.
_PROBES = 32


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


def errors_through(
    pushed: Callable[..., Sequence[Any]],
    arrays: Sequence[Any],
    stderrs: Sequence[Any],
    results: int,
) -> list[Any]:
    """First-order errors of the results of a function of arrays, None if there are no errors.

    ``pushed(*changes)`` are the changes of its results, ``J`` times the changes of its operands.
    The errors ``e`` of entries are known, but not what they have in common: the larger one of
    ``|sum_j J_ij e_j|``, as if all had one cause, and ``(sum_j J_ij^2 e_j^2)^(1/2)``, as if each
    had its own. The second is a mean over random signs, so that large arrays cost no more.
    """
    if all(stderr is None for stderr in stderrs):
        return [None] * results
    known = zip(stderrs, arrays, strict=True)
    errors = [jnp.broadcast_to(0 if e is None else e, a.shape).astype(a.dtype) for e, a in known]

    def probe(key: Any) -> list[Any]:
        keys = jax.random.split(key, len(errors))
        signs = [jax.random.rademacher(k, e.shape) for k, e in zip(keys, errors, strict=True)]
        changes = [e * s.astype(e.dtype) for e, s in zip(errors, signs, strict=True)]
        return [jnp.square(out) for out in pushed(*changes)]

    squares = jax.lax.map(probe, jax.random.split(jax.random.key(0), _PROBES))
    return [
        jnp.maximum(jnp.abs(together), jnp.sqrt(jnp.mean(square, axis=0)))
        for together, square in zip(pushed(*errors), squares, strict=True)
    ]
