"""Sampling errors of vectors and updates: whether they hide a value, not how wide they are.

The error of a vector is that of its finite factors, the same for all coordinates. It is carried
along so that a vector decides nothing whose leading coefficient is an accident of the particles:
`e * u` where `e` is a mean that is 0 in truth, or `a * u - b * u` where `a` equals `b` in truth.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from tplimit.values.tensors import Tensor, Term

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
    return replace(value, terms=tuple(map(_bounded_term, value.terms)))


def _bounded_term(term: Term) -> Term:
    if term.stderr is None:
        return term
    return replace(term, stderr=bounded(term.stderr, jnp.abs(term.coefficient)))
