"""Loops and branches."""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit import _jax
from tplimit._jax import primitives as p
from tplimit.errors import NEXT_TERM_ADVICE, CancellationError, NoLimitError
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Check, Context
from tplimit.interpreter.loop import inside
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices, placed
from tplimit.program.equations import Program
from tplimit.rules.selection import UNDECIDED, decided, needs_decision, select_mask
from tplimit.values.exponents import NEVER, Exponents, Size
from tplimit.values.rearranging import at, rearranged, with_common_exponents
from tplimit.values.tensors import (
    Doubt,
    Matrices,
    Tensor,
    Value,
    knowing,
    leading_term,
    tensor,
    with_one_exponent,
)

#: Loops up to this length are expanded; longer ones are compiled once they are stationary.
UNROLL = 6
#: Iterations after which the carried values must keep their form.
_PEEL = 4
#: Turns after which a ``while`` loop is taken to be endless.
_TURNS = 100_000


@RULES(p.cond_p)
def cond(
    ctx: Context, index: Value, *operands: Value, branches: Sequence[Program], **_: Any
) -> Any:
    """Branch on a finite predicate: decided before the run where possible, else both and chosen."""
    assert isinstance(index, Tensor)
    if not index.finite:
        ctx.fail("A branch on a value with a width axis.", NoLimitError)
    constant = index.constant
    if constant is None:
        constant = ctx.decided(ctx.equation.inputs[0])
    if constant is not None:
        number = int(np.clip(constant, 0, len(branches) - 1))
        return inside(ctx, branches[number], operands)
    results = [inside(ctx, branch, operands) for branch in branches]
    choose = lambda values: [_choose(ctx, values[0], values[1:])]
    return [doubts.followed(ctx, [index, *c], choose)[0] for c in zip(*results, strict=True)]


def _choose(ctx: Context, index: Tensor, cases: Sequence[Value]) -> Value:
    if all(case is cases[0] for case in cases):
        return cases[0]
    tensors = [case for case in cases if isinstance(case, Tensor)]
    of_matrices = len(tensors) < len(cases)
    if of_matrices or needs_decision(tensors):
        chosen = None if of_matrices and index.facts.generic is None else decided(ctx, index)
        if chosen is not None:
            return cases[int(np.clip(chosen, 0, len(cases) - 1))]
        if of_matrices:
            return matrices.select(ctx, index, cases)
        ctx.fail(*UNDECIDED)
    out = tensors[0]
    for number, case in enumerate(tensors[1:], start=1):
        mask = tensor(jnp.asarray(index.coefficient) == number)
        out = select_mask(ctx, mask, (out, case))
    return out


@RULES(p.while_p)
def while_(
    ctx: Context,
    *operands: Value,
    cond_jaxpr: Program,
    body_jaxpr: Program,
    cond_nconsts: int,
    body_nconsts: int,
) -> list[Value]:
    """A loop over finite arrays of order 1. Where it is not known whether it goes on, as when it
    has converged within the sampling error, it is also left, and the outcomes are compared."""
    tests, rest = operands[:cond_nconsts], operands[cond_nconsts:]
    consts, state = rest[:body_nconsts], [_settled(ctx, value) for value in rest[body_nconsts:]]
    doubts.settle(ctx, operands)

    def goes_on(state: list[Tensor]) -> tuple[Tensor, list[Check]]:
        inner = ctx.child(ctx.bank)
        (test,) = inside(inner, cond_jaxpr, [*tests, *state])
        _nothing_asked(ctx, inner)
        assert isinstance(test, Tensor)
        return test, inner.checks

    def turned(state: list[Tensor]) -> tuple[list[Tensor], list[Check]]:
        inner = ctx.child(ctx.bank)
        out = inside(inner, body_jaxpr, [*consts, *state])
        doubts.settle(inner, out)
        _nothing_asked(ctx, inner)
        return [_settled(inner, value) for value in out], inner.checks

    endless = ctx.error(
        f"A while loop has not ended after {_TURNS} turns: their number may grow with the width.",
        NoLimitError,
    )
    state, of_body = _steady_form(ctx, state, turned)
    test, of_test = goes_on(state)
    checks = [*of_test, *of_body]

    def run(going: Callable[[Tensor], Any]) -> tuple[list[Tensor], list[Any]]:
        def turn(carried: Any) -> Any:
            before, _, held, turns = carried
            out, of_body = turned(before)
            after = [_as_wide(a, b) for a, b in zip(out, before, strict=True)]
            again, of_test = goes_on(after)
            now = [jnp.asarray(check.ok) for check in [*of_test, *of_body]]
            held = [a & b for a, b in zip(held, now, strict=True)]
            return after, going(again), held, turns + 1

        held = [jnp.asarray(check.ok) for check in of_test] + [jnp.asarray(True)] * len(of_body)
        start = (state, going(test), held, jnp.zeros((), int))
        more = lambda carried: carried[1] & (carried[3] < _TURNS)
        final, unfinished, held, _ = lax.while_loop(more, turn, start)
        ctx.check(~unfinished, endless)
        return final, held

    final, held = run(lambda test: jnp.asarray(test.coefficient))
    for check, ok in zip(checks, held, strict=True):
        ctx.check(ok, check.error, check.doubt)
    doubt = test.facts.otherwise
    if doubt is None:
        return list(final)
    others = run(lambda test: jnp.asarray(test.coefficient) & ~_in_doubt(test))[0]
    no = jnp.zeros((), bool)
    return [
        knowing(one, otherwise=Doubt((other,) * len(doubt.outcomes), no, doubt.error))
        for one, other in zip(final, others, strict=True)
    ]


def _in_doubt(test: Tensor) -> Any:
    """Whether a predicate may be another one."""
    assert test.facts.otherwise is not None
    outcomes = [jnp.asarray(one.coefficient) for one in test.facts.otherwise.outcomes]
    return functools.reduce(operator.or_, [one != test.coefficient for one in outcomes])


def _steady_form(
    ctx: Context, state: list[Tensor], turned: Callable[[list[Tensor]], Any]
) -> tuple[list[Tensor], list[Check]]:
    """The state in a form that a turn of a loop keeps, and the checks of a turn."""
    for _ in range(_PEEL):
        out, checks = turned(state)
        wider = [_as_wide(a, b) for a, b in zip(state, out, strict=True)]
        if _form(wider) == _form(state):
            break
        state = wider
    else:
        ctx.fail(
            "The values of a while loop change their form at every turn.",
            CancellationError,
            NEXT_TERM_ADVICE,
        )
    return state, checks


def _nothing_asked(ctx: Context, inner: Context) -> None:
    if inner.ledger.asked.rows:
        ctx.fail(
            "Products with a Gaussian matrix in a while loop.",
            advice="Use lax.scan or a Python loop: the number of products must be fixed.",
        )


def _settled(ctx: Context, value: Value) -> Tensor:
    """A finite array of order 1 as one term with one exponent."""
    if not isinstance(value, Tensor) or not value.finite or value.exponents.max() > 0:
        ctx.fail(
            "A while loop over values with a width axis, or that grow with the width.",
            advice="Use lax.scan or a Python loop: the number of iterations must be fixed.",
        )
    value = with_one_exponent(leading_term(value))
    (level,) = value.exponents.levels()
    if level in (0, NEVER):
        remainder = Exponents(value.remainder.max())
        coefficient = value.coefficient
    else:  # nothing of order 1, and all of it unknown
        remainder, coefficient = Exponents(level), jnp.zeros_like(value.coefficient)
    return tensor(jnp.asarray(coefficient), remainder=remainder, stderr=value.stderr)


def _as_wide(value: Tensor, other: Tensor) -> Tensor:
    """A value in the form that holds what is known of it and of another one."""
    stderr = value.stderr
    if stderr is None and other.stderr is not None:
        stderr = jnp.zeros(jnp.shape(other.stderr), jnp.result_type(other.stderr))
    remainder = value.remainder.maximum(other.remainder)
    return tensor(value.coefficient, remainder=remainder, stderr=stderr)


@RULES(p.scan_p)
def scan(
    ctx: Context,
    *operands: Value,
    jaxpr: Program,
    length: int,
    reverse: bool,
    **params: Any,
) -> list[Value]:
    """A loop: expanded while short or not stationary, then compiled as one ``lax.scan``.

    The carried values may change their exponents, ranks and classes in the first iterations.
    """
    if isinstance(length, Size):
        ctx.fail("A loop whose length grows with the width.", NoLimitError)
    num_consts, num_carry = _jax.scan_layout(params)
    consts = list(operands[:num_consts])
    carry = list(operands[num_consts : num_consts + num_carry])
    xs = list(operands[num_consts + num_carry :])
    order = list(range(length))[:: -1 if reverse else 1]
    outputs: dict[int, list[Value]] = {}
    compiled = length > UNROLL and not any(isinstance(x, Matrices) for x in xs)
    before: Any = None
    for done, i in enumerate(order, start=1):
        if compiled and done >= 3:
            before = _form(carry)
        carry, ys = _iteration(ctx, jaxpr, consts, carry, [_item(x, i) for x in xs])
        outputs[i] = ys
        if compiled and 3 <= done <= _PEEL and _form(carry) == before and _steady(xs):
            rest = order[done:]
            carry, stacked = _compiled(ctx, jaxpr, consts, carry, xs, rest)
            return [*carry, *_joined(ctx, outputs, order[:done], rest, stacked, length)]
    ys_out = [_stack(ctx, [outputs[i][k] for i in range(length)]) for k in range(len(outputs[0]))]
    return [*carry, *ys_out] if length else carry


def _iteration(
    ctx: Context, body: Program, consts: list[Value], carry: list[Value], xs: list[Value]
) -> tuple[list[Value], list[Value]]:
    out = inside(ctx, body, [*consts, *carry, *xs])
    new, ys = out[: len(carry)], out[len(carry) :]
    kept = [placed.absorbed(ctx, v) if isinstance(v, Matrices) else v for v in new]
    return kept, ys


def _form(values: Sequence[Value]) -> Any:
    leaves, tree = jax.tree.flatten(values)
    return tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _steady(xs: list[Value]) -> bool:
    return all(isinstance(x, Tensor) and x.exponents.uniform for x in xs)


def _item(value: Value, index: int) -> Value:
    """Entry ``index`` along the first axis."""
    if isinstance(value, Matrices):
        return Matrices(_cell(value.items[index]), (value.axes[0] - 1, value.axes[1] - 1))
    if value.facts.stacked is not None:
        return value.facts.stacked[index]
    return at(value, (index,))


def _cell(item: Any) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item
    cell = np.empty((), dtype=object)
    cell[()] = item
    return cell


def _stack(ctx: Context, values: list[Value]) -> Value:
    """Values of the iterations along a new first axis; the parts are remembered."""
    if isinstance(values[0], Matrices):
        parts = [value for value in values if isinstance(value, Matrices)]
        items = np.empty((len(parts), *parts[0].items.shape), dtype=object)
        for i, part in enumerate(parts):
            items[i] = part.items if part.items.ndim else part.items.item()
        return Matrices(items, (parts[0].axes[0] + 1, parts[0].axes[1] + 1))
    tensors = [value for value in values if isinstance(value, Tensor)]
    axis = None if tensors[0].axis is None else tensors[0].axis + 1
    space = ctx.spaces.unify(*(value.space for value in tensors))
    out = rearranged(tensors, lambda *arrays: jnp.stack(arrays), axis, space)
    return knowing(out, stacked=tuple(values))


def _compiled(
    ctx: Context,
    body: Program,
    consts: list[Value],
    carry: list[Value],
    xs: list[Value],
    rest: list[int],
) -> tuple[list[Value], Any]:
    """The remaining iterations as one ``lax.scan`` over the values and the bank."""
    doubts.settle(ctx, [*consts, *carry, *xs])
    picked = [_reordered(ctx, x, rest) for x in xs]

    def step(state: Any, sliced: Any) -> Any:
        values, bank = state
        inner = ctx.child(bank)
        items: list[Value] = [
            replace(x, terms=terms, axis=None if x.axis is None else x.axis - 1)
            for terms, x in zip(sliced, picked, strict=True)
        ]
        new, ys = _iteration(inner, body, consts, values, items)
        ys = [placed.absorbed(inner, y) if isinstance(y, Matrices) else y for y in ys]
        doubts.settle(inner, [*new, *ys])
        return (new, inner.bank), (ys, inner.checks, inner.ledger.asked)

    (carry, ctx.ledger.bank), (ys, checks, asked) = lax.scan(
        step, (carry, ctx.bank), [x.terms for x in picked], length=len(rest)
    )
    ctx.ledger.count(asked, times=len(rest))
    for check in checks:
        ctx.check(jnp.all(check.ok), check.error, check.doubt)
    return carry, ys


def _reordered(ctx: Context, value: Value, order: list[int]) -> Tensor:
    """Entries along the first axis in the order of the loop, all with the same exponents."""
    assert isinstance(value, Tensor)
    (value,) = with_common_exponents([value], ctx.terms)
    index = np.asarray(order)
    return rearranged([value], lambda array: jnp.asarray(array)[index], value.axis, value.space)


def _joined(
    ctx: Context,
    outputs: dict[int, list[Value]],
    first: list[int],
    rest: list[int],
    stacked: list[Value],
    length: int,
) -> list[Value]:
    """Outputs of the expanded and of the compiled iterations in the order of the loop."""
    joined: list[Value] = []
    for k, late in enumerate(stacked):
        late_items = [_late(late, j) for j in range(len(rest))]
        by_index = {i: outputs[i][k] for i in first} | dict(zip(rest, late_items, strict=True))
        joined.append(_stack(ctx, [by_index[i] for i in range(length)]))
    return joined


def _late(value: Value, j: int) -> Value:
    """Iteration ``j`` of a value whose arrays were stacked by ``lax.scan``."""
    return jax.tree.map(lambda array: array[j], value)
