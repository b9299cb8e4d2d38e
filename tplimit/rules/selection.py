"""Comparisons and choices: where a value decides which way the program goes."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit import algebra, matrices
from tplimit._jax import primitives as p
from tplimit.errors import NoLimitError
from tplimit.interpret import RULES, Context
from tplimit.rules.elementwise import flips
from tplimit.values import Matrices, Tensor, Value, collapsed, tensor
from tplimit.widths import NEVER, NONE, ZERO, Exponents


def _compare(primitive: Any, fn: Callable[[Any, Any], Any], same: bool) -> None:
    def comparison(ctx: Context, a: Value, b: Value) -> Value:
        if isinstance(a, Matrices) or isinstance(b, Matrices):
            return matrices.unsupported(ctx, "a comparison, entry by entry,")
        if a is b:
            axis, space = algebra.frame(ctx, a, b)
            return tensor(np.full(a.shape, same), ZERO, NONE, axis, space)
        return _compared(ctx, a, b, fn, primitive in (p.eq_p, p.ne_p))

    comparison.__name__ = primitive.name
    comparison.__doc__ = f"``{primitive.name}``: decided by the leading term of the difference."
    RULES(primitive)(comparison)


#: Comparisons, and whether they hold of equals.
RELATIONS = [
    (p.gt_p, jnp.greater, False),
    (p.lt_p, jnp.less, False),
    (p.ge_p, jnp.greater_equal, True),
    (p.le_p, jnp.less_equal, True),
    (p.eq_p, jnp.equal, True),
    (p.ne_p, jnp.not_equal, False),
]

for _primitive, _relation, _same in RELATIONS:
    _compare(_primitive, _relation, _same)


def _compared(ctx: Context, a: Tensor, b: Tensor, fn: Any, equality: bool) -> Tensor:
    axis, space = algebra.frame(ctx, a, b)
    if a.exact and b.exact and a.exponents == b.exponents and a.noise is b.noise is None:
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ZERO, NONE, axis, space)
    if a.dtype.kind != "f":
        return tensor(ctx.rebind(a.coefficient, b.coefficient), ZERO, NONE, axis, space)
    exponents = a.exponents.maximum(b.exponents)
    x, y = algebra.aligned(a, exponents), algebra.aligned(b, exponents)
    infinite = algebra.infinite(a) or algebra.infinite(b)
    difference = algebra.add(ctx, a, b, sign=-1) if not infinite else None
    if (
        (difference is not None and not difference.exact)
        or a.noise is not None
        or b.noise is not None
    ):
        _decided(ctx, a, b, difference, x, y, equality)
    remainder = NONE if difference is None else flips(difference)
    return tensor(fn(x, y), ZERO, remainder, axis, space)


def _decided(
    ctx: Context, a: Tensor, b: Tensor, difference: Tensor | None, x: Any, y: Any, equality: bool
) -> None:
    """A comparison must be decided by known terms: never by a coefficient that vanishes."""
    if difference is None:
        return
    error = algebra.undecided(ctx, "A comparison")
    if difference.axis is None:
        if not equality:
            ctx.check(algebra.decided(difference), error)
        return
    undecided = (x == 0) & (y == 0) if equality else x == y
    for value in (a, b):
        if value.vanishes and equality:
            other = b if value is a else a
            sure = other.zeros
        else:
            sure = value.zeros
        if sure is not None:
            undecided = undecided & ~sure
    if not equality and difference.zeros is not None:
        undecided = undecided & ~difference.zeros
    ctx.check(~algebra.beyond_accident(undecided, jnp.result_type(x)), error)


@RULES(p.select_n_p)
def select(ctx: Context, which: Value, *cases: Value) -> Value:
    """Choice by a mask; branches of unequal exponent keep the larger, the rest as remainder.

    A finite predicate whose value decides an exponent is computed before the run.
    """
    if isinstance(which, Matrices):
        matrices.unsupported(ctx, "a choice by the entries")
    if which.finite:
        chosen = which.constant
        if chosen is None and needs_decision(cases):
            assert ctx.equation is not None
            chosen = ctx.decided(ctx.equation.inputs[0])
            if chosen is None and not any(isinstance(case, Matrices) for case in cases):
                ctx.fail(
                    "Which power of the width a value has depends on a predicate that is not "
                    "known before the run.",
                    NoLimitError,
                )
        if chosen is not None and np.all(chosen == chosen.flat[0]):
            case = cases[int(chosen.flat[0])]
            return case
        if chosen is not None and not any(isinstance(case, Matrices) for case in cases):
            return _select_entries(ctx, np.asarray(chosen, dtype=int), cases)
    if any(isinstance(case, Matrices) for case in cases):
        return matrices.select(ctx, which, cases)
    return select_mask(ctx, which, cases)


def needs_decision(cases: tuple[Value, ...]) -> bool:
    if any(isinstance(case, Matrices) for case in cases):
        return False
    levels: set[Any] = set()
    for case in cases:
        assert isinstance(case, Tensor)
        if not algebra.not_finite(case):
            levels.update(case.exponents.levels())
    return len(levels - {NEVER}) > 1


def _select_entries(ctx: Context, chosen: np.ndarray, cases: tuple[Value, ...]) -> Tensor:
    tensors = [case for case in cases if isinstance(case, Tensor)]
    axis, space = algebra.frame(ctx, *tensors)
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
    return tensor(out, exponents, remainder, axis, space, _largest_noise(tensors))


def _largest_noise(cases: list[Tensor]) -> Any:
    noises = [case.noise for case in cases if case.noise is not None]
    return functools.reduce(jnp.maximum, noises) if noises else None


def select_mask(ctx: Context, which: Tensor, cases: tuple[Value, ...]) -> Tensor:
    """Choice entry by entry: the larger exponent leads, exact zeros have any exponent."""
    tensors = [collapsed(case) for case in cases if isinstance(case, Tensor)]
    axis, space = algebra.frame(ctx, which, *tensors)
    ordinary = [case for case in tensors if not algebra.not_finite(case)]
    if ordinary and len(ordinary) < len(tensors):
        # NaN and infinity stay what they are at every power of the width.
        top = ordinary[0].exponents.maximum(*(case.exponents for case in ordinary[1:]))
        tensors = [
            tensor(case.coefficient, top, NONE, case.axis, case.space)
            if algebra.not_finite(case) else case
            for case in tensors
        ]  # fmt: skip
    exponents = tensors[0].exponents.maximum(*(case.exponents for case in tensors[1:]))
    remainder = tensors[0].remainder.maximum(*(case.remainder for case in tensors[1:]))
    for case in tensors:
        lower = case.exponents.map(lambda e, top: e if e != top else NEVER, exponents)
        remainder = remainder.maximum(lower)
    if which.remainder != NONE:
        # Where the mask flips, one branch is taken for the other.
        remainder = remainder.maximum(exponents + which.remainder)
    arrays = [algebra.aligned(case, exponents) for case in tensors]
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
    return tensor(out, exponents, remainder, axis, space, _largest_noise(tensors), zeros)
