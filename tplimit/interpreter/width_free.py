"""Operations on finite arrays that no width and no power of the width touches: plain JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.program.tracing import Equation
from tplimit.program.traits import Refused, kind_of
from tplimit.values.exponents import NEVER, Exponents
from tplimit.values.tensors import Tensor, Value, exactly, leading_term, tensor

Bind = Callable[..., Any]


def is_plain(value: Value) -> bool:
    """Whether it is an ordinary finite array: exact, of order 1, free of sampling error."""
    if not isinstance(value, Tensor) or not value.finite or not value.exact or value.terms[1:]:
        return False
    return value.stderr is None and all(e in (0, NEVER) for e in value.exponents.levels())


def evaluated(bind: Bind, equation: Equation, values: Sequence[Value]) -> list[Value] | None:
    """The outputs of an equation on plain arrays, or None where a width is involved."""
    if equation.plain is None or not all(is_plain(value) for value in values):
        return None
    if any(aval.width_axes for aval in equation.out_avals):
        return None
    if equation.primitive.name == "sub" and equation.inputs[0] is equation.inputs[1]:
        return None  # x - x is exactly zero: its rule knows
    arrays = [value.coefficient for value in values if isinstance(value, Tensor)]
    out = bind(equation.primitive, *arrays, **equation.plain)
    return [exactly(o) for o in (out if equation.primitive.multiple_results else [out])]


def continuous(bind: Bind, equation: Equation, values: Sequence[Value]) -> list[Value] | None:
    """A continuous function of finite arrays of order 1: it acts on the coefficients."""
    primitive, kind = equation.primitive, kind_of(equation.primitive)
    tensors = [leading_term(v) for v in values if isinstance(v, Tensor) and v.finite]
    if not isinstance(kind, Refused) or not kind.continuous or len(tensors) < len(values):
        return None
    if any(set(v.exponents.levels()) - {0, NEVER} for v in tensors):
        return None
    remainder = Exponents(max(v.remainder.max() for v in tensors))
    arrays = [jnp.asarray(v.coefficient) for v in tensors]
    errors = [_tangent(array, value.stderr) for array, value in zip(arrays, tensors, strict=True)]

    def function(*inputs: Any) -> Any:
        return bind(primitive, *inputs, **equation.params)

    out, tangents = jax.jvp(function, tuple(arrays), tuple(errors))
    pairs = zip(out, tangents, strict=True) if primitive.multiple_results else [(out, tangents)]
    return [
        tensor(o, remainder=remainder, stderr=jnp.abs(t) if o.dtype.kind == "f" else None)
        for o, t in pairs
    ]


def _tangent(array: jax.Array, stderr: Any) -> Any:
    if array.dtype.kind != "f":
        return np.zeros(array.shape, jax.dtypes.float0)
    return jnp.zeros_like(array) if stderr is None else jnp.broadcast_to(stderr, array.shape)
