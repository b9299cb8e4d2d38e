"""Operations on finite arrays that no width and no power of the width touches: plain JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.program.equations import Equation
from tplimit.program.traits import Refused, kind_of
from tplimit.values.exponents import NEVER, Exponents
from tplimit.values.sampling_errors import errors_through
from tplimit.values.tensors import Tensor, Value, exactly, generic, knowing, leading_term, tensor

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
    if equation.primitive.multiple_results:
        return [exactly(o) for o in out]
    return [_expected(bind, equation, values, exactly(out))]


def _expected(bind: Bind, equation: Equation, values: Sequence[Value], out: Tensor) -> Tensor:
    """A result of masks that are known but for an accident, with what it is but for that."""
    if all(value.facts.generic is None for value in values):
        return out
    known = [generic(value) for value in values if isinstance(value, Tensor)]
    if any(array is None for array in known):
        return out
    assert equation.plain is not None
    with jax.ensure_compile_time_eval():
        array = np.asarray(bind(equation.primitive, *known, **equation.plain))
    return knowing(out, generic=array)


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

    def function(*inputs: Any) -> list[Any]:
        out = bind(primitive, *inputs, **equation.params)
        return list(out) if primitive.multiple_results else [out]

    def pushed(*changes: Any) -> list[Any]:
        tangents = [
            change if array.dtype.kind == "f" else np.zeros(array.shape, jax.dtypes.float0)
            for array, change in zip(arrays, changes, strict=True)
        ]
        changed = jax.jvp(function, tuple(arrays), tuple(tangents))[1]
        return [jnp.zeros(t.shape) if t.dtype == jax.dtypes.float0 else t for t in changed]

    out = function(*arrays)
    errors = errors_through(pushed, arrays, [value.stderr for value in tensors], len(out))
    return [
        tensor(o, remainder=remainder, stderr=e if o.dtype.kind == "f" else None)
        for o, e in zip(out, errors, strict=True)
    ]
