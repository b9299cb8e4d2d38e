"""Operations that move entries without changing them: what is known of the entries moves along.

Slices, stacks, transposes, gathers and the like are all ``rearranged(values, move, axis, space)``
with a function of arrays ``move``. It acts on the coefficients, standard errors and masks of exact
zeros of every term, and on the exponents where these differ. So nothing is lost by moving: values
keep all their terms, parities, and what is unknown of them.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEVER, Exponent, Exponents
from tplimit.values.parity import EVEN, Parity
from tplimit.values.tensors import Tensor, Term, knowing, parity_of_unknown, zeros_of


def rearranged(
    values: Sequence[Tensor], move: Callable[..., Any], axis: int | None, space: int | None
) -> Tensor:
    """The entries of one or several values, put elsewhere.

    Args:
        values: of any number of terms. Coordinates of different values must not come side by side
            along a width unless their exponents are equal (``with_common_exponents``).
        move: function of one array for each value, of its shape, that moves, repeats or leaves out
            entries. Where exponents differ it must be known before the run what it does.
        axis: of the result; a number that is repeated along it is constant.
        space: of the result.
    """
    count = max(len(value.terms) for value in values)
    terms = tuple(
        _term([_number(value, k) for value in values], values, move, axis) for k in range(count)
    )
    remainder = _exponents([value.remainder for value in values], values, move, axis)
    out = Tensor(terms, remainder, axis, space)
    if remainder != EXACT_ZERO:
        those = [parity_of_unknown(v) for v in values if v.remainder != EXACT_ZERO]
        out = knowing(out, unknown=functools.reduce(Parity.__and__, those))
    return patches.inheriting(out, *values)


def gathered(values: np.ndarray, place: int | None, space: int | None) -> Tensor:
    """Numbers, or vectors along a width, as one array with the axes of this object array, in which
    the width is the axis ``place``."""
    if not values.ndim:
        value: Tensor = values.item()
        return value

    def stacked(*arrays: Any) -> Any:
        out = jnp.stack(arrays).reshape(values.shape + arrays[0].shape)
        return out if place is None else jnp.moveaxis(out, values.ndim, place)

    return rearranged(list(values.flat), stacked, place, space)


def _number(value: Tensor, k: int) -> Term:
    """Term number ``k``; beyond the last one there is nothing."""
    if k < len(value.terms):
        return value.terms[k]
    return Term(np.broadcast_to(np.zeros((), value.dtype), value.shape), EXACT_ZERO, parity=EVEN)


def _term(
    terms: list[Term], values: Sequence[Tensor], move: Callable[..., Any], axis: int | None
) -> Term:
    shapes = [value.shape for value in values]
    coefficients = [term.coefficient for term in terms]
    if len({jnp.result_type(c) for c in coefficients}) > 1:
        dtype = jnp.result_type(*coefficients)
        coefficients = [jnp.asarray(c, dtype) for c in coefficients]
    stderr, zeros = None, None
    if any(term.stderr is not None for term in terms):
        parts = [
            np.zeros((), jnp.result_type(c)) if t.stderr is None else t.stderr
            for t, c in zip(terms, coefficients, strict=True)
        ]
        stderr = move(*map(jnp.broadcast_to, parts, shapes))
    if any(term.zeros is not None for term in terms):
        parts = [
            np.asarray(t.exponents == EXACT_ZERO) if t.zeros is None else t.zeros for t in terms
        ]
        zeros = move(*map(jnp.broadcast_to, parts, shapes))
    parity = EVEN if axis is None else _common_parity(terms)
    exponents = _exponents([term.exponents for term in terms], values, move, axis)
    return Term(move(*coefficients), exponents, stderr, zeros, parity)


def _exponents(
    parts: list[Exponents], values: Sequence[Tensor], move: Callable[..., Any], axis: int | None
) -> Exponents:
    """Exponents are moved as numbers of a list of them, before the run."""
    if parts[0].uniform and all(part == parts[0] for part in parts):
        return parts[0]
    levels = sorted({level for part in parts for level in part.array.flat})
    code = np.vectorize({level: k for k, level in enumerate(levels)}.__getitem__, [np.int32])
    codes = [np.broadcast_to(code(e.array), v.shape) for e, v in zip(parts, values, strict=True)]
    with jax.ensure_compile_time_eval():
        out = np.asarray(move(*codes))
    if axis is not None:
        out = np.take(out, [0], axis=axis)
    return Exponents(np.array(levels, dtype=object)[np.clip(out, 0, len(levels) - 1)])


def have_equal_exponents(values: Sequence[Tensor]) -> bool:
    """Whether values have as many terms, of the same exponents, and the same remainder."""
    forms = [(value.remainder, *(term.exponents for term in value.terms)) for value in values]
    return all(form == forms[0] for form in forms)


def have_common_exponents(values: Sequence[Tensor]) -> bool:
    """Whether terms and remainders have one exponent each, the same in all values."""
    first = values[0]
    uniform = all(e.uniform for e in (first.remainder, *(term.exponents for term in first.terms)))
    return uniform and have_equal_exponents(values)


def with_common_exponents(values: Sequence[Tensor], terms: int) -> list[Tensor]:
    """The same values, every term having one exponent, the same in all of them.

    The largest ``terms`` exponents are kept, the others join the remainder.
    """
    if have_common_exponents(values):
        return list(values)
    levels = sorted(
        {e for value in values for term in value.terms for e in term.exponents.levels()} - {NEVER},
        reverse=True,
    )
    rest = max([NEVER, *levels[terms:], *(value.remainder.max() for value in values)])
    kept = [level for level in levels[:terms] if level > rest or terms == 1] or [NEVER]
    found = [[_at_level(value, level, alone=len(kept) == 1) for value in values] for level in kept]
    terms_of = zip(*map(_with_exponent, found, kept), strict=True)
    return [
        replace(value, terms=own, remainder=Exponents(rest))
        for value, own in zip(values, terms_of, strict=True)
    ]


def _at_level(value: Tensor, level: Exponent, alone: bool) -> Term:
    """What a value has of this exponent; its only term where it is ``alone``."""
    own = [restricted(t, level) for t in value.terms if level in t.exponents.levels()]
    term = functools.reduce(_together, own) if own else _number(value, len(value.terms))
    # Zeros of a single term stand for zeros of the value.
    return replace(term, zeros=zeros_of(value) if alone else term.zeros)


def _with_exponent(terms: Sequence[Term], level: Exponent) -> list[Term]:
    """Terms of different values with one exponent, and one parity."""
    parity = _common_parity(terms)
    return [replace(term, exponents=Exponents(level), parity=parity) for term in terms]


def _common_parity(terms: Sequence[Term]) -> Parity:
    """Parity of terms side by side; zeros are odd and even in everything, but not fresh."""
    known = [term.parity for term in terms if term.exponents != EXACT_ZERO]
    parity = functools.reduce(Parity.__and__, known or [EVEN])
    return parity if len(known) in (0, len(terms)) else replace(parity, fresh=False)


def restricted(term: Term, level: Exponent) -> Term:
    """The entries of a term that have this exponent, zeros elsewhere."""
    if term.exponents.uniform:
        return term
    return kept_entries(term, term.exponents.map(lambda e: float(e == level)))


def kept_entries(term: Term, marks: Exponents) -> Term:
    """The entries of a term that are marked with 1, zeros elsewhere."""
    mask, dtype = marks.mask(1), jnp.result_type(term.coefficient)
    return replace(
        term,
        coefficient=jnp.where(mask, term.coefficient, jnp.zeros((), dtype)),
        exponents=term.exponents.map(lambda e, mark: e if mark else NEVER, marks),
        stderr=None if term.stderr is None else jnp.where(mask, term.stderr, 0),
    )


def _together(a: Term, b: Term) -> Term:
    """Terms that share no entry."""
    stderrs = [stderr for stderr in (a.stderr, b.stderr) if stderr is not None]
    zeros = None if a.zeros is None or b.zeros is None else a.zeros & b.zeros
    stderr = functools.reduce(operator.add, stderrs) if stderrs else None
    return Term(a.coefficient + b.coefficient, a.exponents, stderr, zeros, a.parity & b.parity)


def at(value: Tensor, index: tuple[int | slice, ...]) -> Tensor:
    """The entries at an index: integers and slices along finite axes, slices along the width."""
    index = (*index, *[slice(None)] * (len(value.shape) - len(index)))
    axis = value.axis
    if axis is not None:
        axis -= sum(1 for place in index[:axis] if not isinstance(place, slice))
    return rearranged([value], lambda array: array[index], axis, value.space)


def permuted(value: Tensor, order: Sequence[int]) -> Tensor:
    """Axes in a new order."""
    if list(order) == list(range(len(order))):
        return value
    axis = None if value.axis is None else list(order).index(value.axis)
    return rearranged([value], lambda array: jnp.transpose(array, order), axis, value.space)
