"""Forms of rules that follow from what kind a primitive is (``traits.py``).

Of a primitive of which nothing else is known, the rule acts on the leading terms. One that is
linear acts on every term; one that moves entries, or runs programs, takes values as they are.
"""

from dataclasses import replace
from typing import Any

from tplimit.algebra import expansion
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices
from tplimit.program.traits import Control, Identity, Kind, Linear, linear_places
from tplimit.values import patches
from tplimit.values.tensors import Tensor, Value, knowing, leading_term, with_parity


def outputs_of(out: Any) -> list[Value]:
    """What a rule gives, as a list."""
    return list(out) if isinstance(out, (list, tuple)) else [out]


def one_term(ctx: Context, *values: Value) -> list[Value]:
    """The current operation on values of one term."""
    form = RULES.form("one", ctx.equation.primitive, ctx.kind)
    return outputs_of(form(ctx, *values, **ctx.equation.params))


def one_term_of(ctx: Context, *values: Value) -> Tensor:
    """The current operation on values of one term, where it gives one tensor."""
    (out,) = one_term(ctx, *values)
    assert isinstance(out, Tensor)
    return out


def zero_with(value: Tensor, out: Tensor) -> Tensor:
    """The same result, of which is known that it is 0 where a vector is."""
    return out if out.axis is None else knowing(out, zero_with=root_of(value))


def root_of(value: Tensor) -> Tensor:
    """The vector with which this one is known to vanish, itself if there is no other."""
    return value if value.facts.zero_with is None else value.facts.zero_with


# --- whatever has no other form

_any = RULES.of_kind(Kind)


@_any.several
def leading(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """The rule on the leading terms; it acts on each coordinate by itself."""
    # One value stays one: x == x is decided.
    found = {id(v): leading_term(v) if isinstance(v, Tensor) else v for v in values}
    first = [found[id(v)] for v in values]
    parity = expansion.plus_parity(values)
    outputs = one_term(ctx, *first)
    return [with_parity(out, parity) if isinstance(out, Tensor) else out for out in outputs]


def leading_of(ctx: Context, *values: Value) -> Tensor:
    """The same for an operation that gives one tensor."""
    (out,) = leading(ctx, *values)
    assert isinstance(out, Tensor)
    return out


@_any.matrices
def unsupported(ctx: Context, *values: Value, **_: Any) -> Any:
    """Refused."""
    matrices.unsupported(ctx, f"{ctx.equation.primitive.name}, entry by entry,")


# --- operations that give back what they get

_identity = RULES.of_kind(Identity)


@_identity.one
@_identity.several
@_identity.matrices
def identity(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """Identity."""
    return list(values)


_control = RULES.of_kind(Control)


@_control.several
@_control.matrices
def as_they_are(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """Programs inside see to the terms of their values."""
    return one_term(ctx, *values)


# --- linear operations

_linear = RULES.of_kind(Linear)


@_linear.several
def linearly(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """Term by term, with zeros for the other operands; what moves entries does so at once."""
    kind, known = ctx.kind, ctx.equation.primitive in RULES.rules
    assert isinstance(kind, Linear)
    if kind.moves and known:
        return one_term(ctx, *values)
    places = linear_places(ctx.equation)
    zeros = [expansion.zero(v) if i in places else v for i, v in enumerate(values)]  # type: ignore[arg-type]
    found: list[list[Tensor]] = []
    for place in places:
        value = values[place]
        assert isinstance(value, Tensor)
        if value.vanishes and len(places) > 1 and place != places[-1]:
            continue
        for piece in expansion.pieces(value):
            operands = [piece if i == place else v for i, v in enumerate(zeros)]
            outputs = one_term(ctx, *operands)
            found = found or [[] for _ in outputs]
            for parts, out in zip(found, outputs, strict=True):
                assert isinstance(out, Tensor)
                # Of what is only declared, a row may combine nothing: it is zero.
                parity = piece.parity if known else replace(piece.parity, fresh=False)
                parts.append(expansion.symmetric(out, parity))
    given = [v for v in values if isinstance(v, Tensor)]
    return [patches.inheriting(expansion.total(ctx, parts), *given) for parts in found]


@_linear.matrices
def moving_matrices(ctx: Context, *values: Value, **params: Any) -> list[Value]:
    """Rules that move entries know how to move matrices."""
    kind = ctx.kind
    assert isinstance(kind, Linear)
    return one_term(ctx, *values) if kind.moves else unsupported(ctx, *values)
