"""The interpreter: one loop over the equations of a program."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.errors import (
    COMPLEX_ADVICE,
    LimitError,
    NoLimitError,
    UnsupportedOperationError,
    WidthError,
)
from tplimit.interpreter import doubts, layers, zeros
from tplimit.interpreter.context import Context, Place
from tplimit.interpreter.table import RULES, Form
from tplimit.interpreter.width_free import continuous, evaluated
from tplimit.program.equations import Constant, Equation, Operand, Program, Slot
from tplimit.program.tracing import COMPLEX, is_complex
from tplimit.program.traits import Control, Kind, Refused, kind_of
from tplimit.values.exponents import EXACT_ZERO, NEVER
from tplimit.values.parity import EVEN
from tplimit.values.sampling_errors import with_bounded_errors
from tplimit.values.tensors import Matrices, Tensor, Value, tensor, with_parity


def constant_value(ctx: Context, constant: Constant) -> Tensor:
    """A number or array of the program as a value."""
    fitted, aval = constant.fitted, constant.aval
    axes = aval.width_axes
    array: Any = fitted.coefficient
    exponents, remainder = fitted.exponents, fitted.remainder
    if ctx.exact:
        array, remainder = fitted.last, EXACT_ZERO
        exponents = exponents.map(lambda e: NEVER if e == NEVER else Fraction(0))
    elif fitted.logs is not None:
        array = array + (fitted.logs * ctx.log_n).astype(array.dtype)
    if len(axes) == 1:
        broadcast = np.broadcast_to if isinstance(array, np.ndarray) else jnp.broadcast_to
        array = broadcast(array, ctx.shape(aval.shape))
        return with_parity(tensor(array, exponents, remainder, axes[0]), EVEN)
    if len(axes) > 1:
        raise WidthError("A constant array with two width axes is not supported.")
    return tensor(array, exponents, remainder)


def evaluate(ctx: Context, program: Program, inputs: Sequence[Value]) -> list[Value]:
    """Interpret ``program`` on values."""
    environment: dict[Slot, Value] = dict(zip(program.inputs, inputs, strict=True))

    def read(operand: Operand) -> Value:
        if isinstance(operand, Slot):
            return environment[operand]
        return constant_value(ctx, operand)

    outside = ctx.at
    try:
        for equation in program.equations:
            ctx.at = Place(program, equation, kind_of(equation.primitive), ())
            values = [read(operand) for operand in equation.inputs]
            ctx.at = ctx.at._replace(operands=values)
            outputs = apply(ctx, equation, values)
            environment.update(zip(equation.outputs, outputs, strict=True))
    finally:
        ctx.at = outside
    return [read(operand) for operand in program.outputs]


def inside(ctx: Context, program: Program, inputs: Sequence[Value]) -> list[Value]:
    """Interpret the body of a loop or a branch."""
    nested, ctx.nested = ctx.nested, True
    try:
        return evaluate(ctx, program, inputs)
    finally:
        ctx.nested = nested


def apply(ctx: Context, equation: Equation, values: Sequence[Value]) -> list[Value]:
    """One equation, for all outcomes of decisions that are not sure."""
    finite = all(isinstance(value, Tensor) and value.finite for value in values)
    if isinstance(ctx.kind, Control) and not finite:  # its equations are followed one by one
        return _once(ctx, equation, values)
    return doubts.followed(ctx, values, functools.partial(_once, ctx, equation))


def _once(ctx: Context, equation: Equation, values: Sequence[Value]) -> list[Value]:
    """One equation: plainly where no width and no power of n is involved, else by its rule."""
    for plainly in (evaluated, continuous):
        out = plainly(ctx.bind, equation, values)
        if out is not None:
            return out
    form = _form(ctx, equation, values)
    many: list[Value] = []
    try:
        with doubts.shown(ctx, many):
            outputs = form(ctx, *values, **equation.params)
            many += outputs if isinstance(outputs, (list, tuple)) else [outputs]
    except LimitError as error:
        if error.location is None:
            ctx.fail(error.reason, type(error), error.advice or "")
        raise
    if ctx.terms > 1 and not ctx.exact and not isinstance(ctx.kind, Control):
        one = RULES.form("one", equation.primitive, ctx.kind)
        many = layers.followed(ctx, lambda *xs: one(ctx, *xs, **equation.params), values, many)
    many = [zeros.with_marginals(equation, ctx.kind, values, out) for out in many]
    return [with_bounded_errors(out) if isinstance(out, Tensor) else out for out in many]


def _form(ctx: Context, equation: Equation, values: Sequence[Value]) -> Form:
    """What the operation of an equation does to values of the sort at hand."""
    primitive, kind = equation.primitive, ctx.kind
    if isinstance(kind, Refused):
        error = UnsupportedOperationError if kind.may_exist else NoLimitError
        ctx.fail(f"{primitive.name}: {kind.reason}", error)
    missing = [place for place in kind.linear or () if place >= len(equation.inputs)]
    if missing:
        ctx.fail(f"{primitive.name} was declared linear in operand {missing[0]}, which it has not.")
    if any(is_complex(aval) for aval in equation.in_avals):
        ctx.fail(COMPLEX, advice=COMPLEX_ADVICE)
    if not RULES.has(primitive, kind):
        kind = _found(ctx, equation)
        ctx.at = Place(ctx.program, equation, kind, values)
    if any(isinstance(value, Matrices) for value in values):
        return RULES.form("matrices", primitive, kind)
    return RULES.form("one" if ctx.terms == 1 else "several", primitive, kind)


def _found(ctx: Context, equation: Equation) -> Kind:
    """What an operation is that is in no table, if it acts entry by entry."""
    primitive = equation.primitive
    if primitive.name.startswith("random_"):
        ctx.fail(
            "A random key or its use depends on a width.",
            NoLimitError,
            "Derive keys from numbers that do not depend on the width; for random vectors use "
            "parameters made with tp.normal.",
        )
    found = RULES.probed(equation)
    if isinstance(found, str):
        ctx.fail(
            f"There is no rule for the operation {primitive.name} on values that depend on a "
            f"width, and it is not known to act entry by entry: {found}.",
            UnsupportedOperationError,
            "Rewrite it with supported operations (the page on operations lists them), or enter a "
            "rule of your own: @tp.rule(primitive), or tp.rule(primitive, linear=(0,)).",
        )
    return found
