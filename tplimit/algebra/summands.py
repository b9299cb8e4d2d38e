"""Sums as linear combinations of the values that a program adds: equal ones of both signs cancel.

``(v + u) - v`` is ``u``, whatever is unknown of ``v`` and however small ``u`` is. Term by term
no more of it would be left than the sum has kept, which ends with what is unknown of ``v``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tplimit.values.tensors import Matrices, Summand, Tensor, Value, knowing

#: Longer sums are values of their own.
_MOST = 64


class Sums(NamedTuple):
    """How values of one kind are added: their sum, what is negative, what is zero."""

    plus: Callable[[Any, Any], Any]
    negative: Callable[[Any], Any]
    zero: Callable[[Any], Any]

    def combined(self, a: Value, b: Value, sign: int, plainly: Callable[[Any, Any], Any]) -> Any:
        """``a + sign b``, by what it is a sum of where some of that cancels, else ``plainly``."""
        like = _of_their_form(a, b)
        if like is None:
            return plainly(a, b)
        every = [*_summands(a), *(Summand(sign * s.sign, s.value) for s in _summands(b))]
        left = _uncancelled(every)
        out = plainly(a, b) if len(left) == len(every) else self._sum(left, like)
        return knowing(out, summands=tuple(left)) if 0 < len(left) <= _MOST else out

    def negated(self, value: Value) -> Any:
        """A negative value, with all its summands."""
        opposite = tuple(Summand(-one.sign, one.value) for one in _summands(value))
        return knowing(self.negative(value), summands=opposite)

    def _sum(self, left: list[Summand], like: Value) -> Any:
        signed = [s.value if s.sign > 0 else self.negative(s.value) for s in left]
        if not any(_form(value) == _form(like) for value in signed):
            signed.append(self.zero(like))
        return functools.reduce(self.plus, signed)


def _summands(value: Value) -> tuple[Summand, ...]:
    return value.facts.summands or (Summand(1, value),)


def _uncancelled(every: list[Summand]) -> list[Summand]:
    """The summands without pairs of one value with both signs."""
    left: list[Summand] = []
    for one in every:
        places = (i for i, s in enumerate(left) if s.value is one.value and s.sign != one.sign)
        place = next(places, None)
        if place is None:
            left.append(one)
        else:
            del left[place]
    return left


def _form(value: Value) -> Any:
    return (value.items.shape, value.axes) if isinstance(value, Matrices) else value.shape


def _of_their_form(a: Value, b: Value) -> Value | None:
    """One of them that has the form of their sum; None if there is none."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        shape = np.broadcast_shapes(a.shape, b.shape)
        return next((value for value in (a, b) if value.shape == shape), None)
    return a if type(a) is type(b) and _form(a) == _form(b) else None
