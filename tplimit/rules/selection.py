"""Choices: where a mask or a predicate decides which way the program goes."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion
from tplimit.errors import NoLimitError
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices
from tplimit.rules.comparisons import part_of
from tplimit.rules.entrywise import of_entries
from tplimit.rules.terms import one_term_of, root_of, zero_with
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEVER, Exponents
from tplimit.values.parity import EVEN
from tplimit.values.tensors import (
    Matrices,
    Tensor,
    Value,
    knowing,
    leading_term,
    tensor,
    with_parity,
)


@RULES(p.select_n_p)
def select(ctx: Context, which: Tensor, *cases: Tensor) -> Tensor:
    """Choice by a mask; branches of unequal exponent keep the larger, the rest as remainder.

    A finite predicate whose value decides an exponent is computed before the run.
    """
    if which.finite:
        chosen = which.constant
        if chosen is None and needs_decision(cases):
            chosen = decided(ctx, which)
            if chosen is None:
                ctx.fail(*UNDECIDED)
        if chosen is not None and np.all(chosen == chosen.flat[0]):
            return cases[int(chosen.flat[0])]
        if chosen is not None:
            return _select_entries(ctx, np.asarray(chosen, dtype=int), cases)
    return select_mask(ctx, which, cases)


UNDECIDED = (
    "Which power of the width a value has depends on a predicate that is not known before the run.",
    NoLimitError,
    "Where a threshold is for a norm: the norm of a matrix grows with the width, and so should the "
    "threshold, by a factor x.shape[0]**e.",
)


def decided(ctx: Context, which: Tensor) -> np.ndarray | None:
    """A finite predicate computed before the run, or what it is but for an accident, which the run
    then rules out."""
    chosen = ctx.decided(ctx.equation.inputs[0])
    if chosen is None and which.facts.generic is not None:
        chosen = which.facts.generic
        error = doubts.undecided(ctx, "A choice between powers of the width")
        ctx.check(jnp.all(jnp.asarray(which.coefficient) == chosen), error)
        doubts.settle(ctx, [which], share=0)
    return chosen


@select.matrices
def select_matrices(ctx: Context, which: Value, *cases: Value) -> Value:
    if isinstance(which, Matrices):
        number = matrices.number_of(ctx, which)
        if number is None:
            return of_entries(ctx, which, *cases)
        which = number
    chosen = which.constant
    if chosen is None and which.facts.generic is not None:
        chosen = decided(ctx, which)
    if chosen is not None and chosen.size and np.all(chosen == chosen.flat[0]):
        return cases[int(chosen.flat[0])]
    return matrices.select(ctx, which, cases)


@select.several
def select_series(ctx: Context, which: Tensor, *cases: Tensor) -> Tensor:
    chosen = which.constant if which.finite else None
    if which.finite and chosen is None and needs_decision(cases):
        chosen = decided(ctx, which)
    if chosen is not None and chosen.size and np.all(chosen == chosen.flat[0]):
        return cases[int(chosen.flat[0])]
    gate = which.facts.zero_with
    agree = gate is not None and all(c.vanishes or root_of(c) is gate for c in cases)
    if agree and len(cases) == 2 and which.axis is not None:
        assert gate is not None
        out = expansion.select_continuously(ctx, which, (cases[1], cases[0]))
        part = part_of(cases[1])
        if cases[0].vanishes and which.facts.positive_part_of is part:
            out = knowing(out, positive_part_of=part)
        return zero_with(gate, out)
    zeros = [expansion.zero(case) for case in cases]
    from_mask = which.parity if which.axis is not None else EVEN
    parts, found = [], []
    known = replace(which, patches=())
    for place, case in enumerate(cases):
        alone = all(other.vanishes for other in cases if other is not case)
        if alone and which.axis is not None and case.remainder != EXACT_ZERO:
            found.append(expansion.unknown_where(case, which.coefficient == place))
            case = replace(case, remainder=EXACT_ZERO)
        for piece in expansion.pieces(case):
            operands = [piece if i == place else z for i, z in enumerate(zeros)]
            out = one_term_of(ctx, known, *operands)
            parts.append(with_parity(out, piece.parity * from_mask))
    out = patches.inheriting(expansion.total(ctx, parts), *cases)
    size = max(patches.bound_of(case) for case in cases)
    return patches.with_patches(out, *found, *(patch + size for patch in which.patches))


def needs_decision(cases: Sequence[Tensor]) -> bool:
    """Whether cases have different powers of the width."""
    levels: set[Any] = set()
    for case in cases:
        if not arithmetic.not_finite(case):
            levels.update(case.exponents.levels())
    return len(levels - {NEVER}) > 1


def _select_entries(ctx: Context, chosen: np.ndarray, cases: Sequence[Tensor]) -> Tensor:
    tensors = list(cases)
    axis, space = arithmetic.common_axis(ctx, *tensors)
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
    return tensor(out, exponents, remainder, axis, space, _largest_stderr(tensors))


def _largest_stderr(cases: list[Tensor]) -> Any:
    stderrs = [case.stderr for case in cases if case.stderr is not None]
    return functools.reduce(jnp.maximum, stderrs) if stderrs else None


def select_mask(ctx: Context, which: Tensor, cases: Sequence[Tensor]) -> Tensor:
    """Choice entry by entry: the larger exponent leads, exact zeros have any exponent."""
    tensors = [leading_term(case) for case in cases]
    axis, space = arithmetic.common_axis(ctx, which, *tensors)
    ordinary = [case for case in tensors if not arithmetic.not_finite(case)]
    if ordinary and len(ordinary) < len(tensors):
        # NaN and infinity stay what they are at every power of the width.
        top = ordinary[0].exponents.maximum(*(case.exponents for case in ordinary[1:]))
        tensors = [
            tensor(case.coefficient, top, EXACT_ZERO, case.axis, case.space)
            if arithmetic.not_finite(case) else case
            for case in tensors
        ]  # fmt: skip
    exponents = tensors[0].exponents.maximum(*(case.exponents for case in tensors[1:]))
    remainder = tensors[0].remainder.maximum(*(case.remainder for case in tensors[1:]))
    for case in tensors:
        lower = case.exponents.map(lambda e, top: e if e != top else NEVER, exponents)
        remainder = remainder.maximum(lower)
    if which.remainder != EXACT_ZERO:
        # Where the mask flips, one branch is taken for the other.
        remainder = remainder.maximum(exponents + which.remainder)
    arrays = [arithmetic.at_exponents(case, exponents) for case in tensors]
    pieces = [jnp.asarray(a, tensors[0].dtype) for a in arrays]
    out = lax.select_n(jnp.asarray(which.coefficient), *pieces)
    zeros = None
    if axis is not None and any(c.zeros is not None or c.vanishes for c in tensors):
        masks = [
            jnp.ones(np.shape(out), bool) if case.vanishes
            else jnp.zeros(np.shape(out), bool) if case.zeros is None else case.zeros
            for case in tensors
        ]  # fmt: skip
        zeros = lax.select_n(jnp.broadcast_to(which.coefficient, np.shape(out)), *masks)
    return tensor(out, exponents, remainder, axis, space, _largest_stderr(tensors), zeros)
