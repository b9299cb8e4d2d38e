"""Operations declared linear, ``tp.rule(primitive, linear=...)``: evaluated on the coefficients.

A width may only pass through: the operation must act on each coordinate along it by itself, and on
all alike. That, and that it is linear at all, is tried out on small arrays.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import entry_function
from tplimit.caching.store import kept
from tplimit.errors import RULE_ADVICE, NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.interpreter.width_free import is_plain
from tplimit.program.equations import Aval, Equation
from tplimit.program.traits import Linear, linear_places
from tplimit.values.exponents import Exponents, Size
from tplimit.values.rearranging import with_common_exponents
from tplimit.values.sampling_errors import errors_through
from tplimit.values.tensors import Tensor, Value, tensor

#: Length of a common width in the arrays on which an operation is tried out.
_WIDTH = 12


@RULES.of_kind(Linear).one
def declared(ctx: Context, *values: Value, **_: Any) -> list[Value]:
    """``sum_j L_ij c_j``, with one exponent for all entries; errors pass by ``errors_through``."""
    equation = ctx.equation
    places = linear_places(equation)
    reason = _tried(equation, places)
    if reason:
        ctx.fail(
            f"{equation.primitive.name} was declared linear, but {reason}.",
            NoLimitError,
            RULE_ADVICE,
        )
    tensors = [value for value in values if isinstance(value, Tensor)]
    for place, value in enumerate(tensors):
        if place not in places and not is_plain(value):
            ctx.fail(
                f"{equation.primitive.name}: operand {place}, in which it is not linear, has a "
                "width, scales with one, or is not known exactly."
            )
    linear = with_common_exponents([tensors[place] for place in places], 1)
    arrays = [jnp.asarray(value.coefficient) for value in tensors]
    for place, value in zip(places, linear, strict=True):
        arrays[place] = jnp.asarray(value.coefficient)
    apply = _function(equation, ctx.resolve(equation.params), arrays)
    top, lost = linear[0].exponents, Exponents(max(v.remainder.max() for v in linear))
    space = ctx.spaces.unify(*(value.space for value in linear))
    out: list[Value] = []
    results = apply(*arrays)
    stderrs = [value.stderr for value in linear]
    errors = errors_through(
        functools.partial(_pushed, apply, places, arrays),
        [arrays[place] for place in places], stderrs, len(results),
    )  # fmt: skip
    for array, aval, error in zip(results, equation.out_avals, errors, strict=True):
        axis = aval.width_axes[0] if aval.width_axes else None
        out.append(tensor(array, top, lost, axis, space if axis is not None else None, error))
    return out


def _pushed(
    apply: Callable[..., list[Any]], places: Sequence[int], arrays: Sequence[Any], *changes: Any
) -> list[Any]:
    """The operation on changes of the operands in which it is linear."""
    operands = [*arrays]
    for place, change in zip(places, changes, strict=True):
        operands[place] = change
    return apply(*operands)


def _function(equation: Equation, params: Any, arrays: Sequence[Any]) -> Callable[..., list[Any]]:
    """The operation on arrays, its results as a list."""
    found = entry_function(equation.primitive, params, list(arrays))
    if isinstance(found, str):
        raise TypeError(found)

    def apply(*operands: Any) -> list[Any]:
        out = found(*operands)
        return list(out) if equation.primitive.multiple_results else [out]

    return apply


# --- trying out


def _tried(equation: Equation, places: tuple[int, ...]) -> str:
    """Why an operation is not linear, coordinate by coordinate; empty if it is."""
    avals = (*equation.in_avals, *equation.out_avals)
    shapes = tuple((aval.shape, str(aval.dtype)) for aval in avals)
    integers = [k for k in places if not jnp.issubdtype(equation.in_avals[k].dtype, jnp.floating)]
    if integers:
        return f"operand {integers[0]} is no array of real numbers"
    test = functools.partial(_reason, equation, places)
    return kept("linear", test, equation.primitive, equation.params, shapes, places)


def _reason(equation: Equation, places: tuple[int, ...]) -> str:
    sizes = [d for a in (*equation.in_avals, *equation.out_avals) for d in a.shape]
    ratios = [d.ratio.denominator for d in sizes if isinstance(d, Size)]
    width = _WIDTH * math.lcm(1, *ratios)

    def small(value: Any) -> Any:
        return value.at(width) if isinstance(value, Size) else value

    rng = np.random.default_rng(0)

    def drawn(aval: Aval) -> np.ndarray:
        shape = tuple(map(small, aval.shape))
        if jnp.issubdtype(aval.dtype, jnp.floating):
            return rng.normal(size=shape).astype(aval.dtype)
        return rng.integers(0, 2, shape).astype(aval.dtype)  # such as indices

    params = jax.tree.map(small, equation.params, is_leaf=lambda x: isinstance(x, Size))
    x = [drawn(aval) for aval in equation.in_avals]
    y = [drawn(aval) if k in places else x[k] for k, aval in enumerate(equation.in_avals)]
    try:
        with jax.ensure_compile_time_eval():
            apply = _function(equation, params, x)
            run = lambda arrays: [np.asarray(out) for out in apply(*map(jnp.asarray, arrays))]
            return _not_linear(run, x, y, places) or _along(run, equation, x, places)
    except Exception as error:  # foreign code may raise anything
        return f"evaluated on small arrays it raises {type(error).__name__}: {error}"


def _not_linear(run: Any, x: list[Any], y: list[Any], places: tuple[int, ...]) -> str:
    """Whether it is 0 at 0, adds, and does so from very small to very large numbers."""

    def at(a: float, b: float) -> list[np.ndarray]:
        pairs = enumerate(zip(x, y, strict=True))
        return run([(a * u + b * v).astype(u.dtype) if k in places else u for k, (u, v) in pairs])

    if any(np.any(out) for out in at(0, 0)):
        return "it is not 0 at 0"
    one, other = at(1, 0), at(0, 1)
    far = 2.0 ** (min(jnp.finfo(x[place].dtype).maxexp for place in places) // 3)
    for a, b in ((2, 1), (far, -far), (1 / far, 1 / far)):
        expected = [a * u + b * v for u, v in zip(one, other, strict=True)]
        if not all(map(_close, at(a, b), expected)):
            return "it is not"
    return ""


def _along(run: Any, equation: Equation, x: list[Any], places: tuple[int, ...]) -> str:
    """Whether widths pass through: coordinates apart, all alike, and as many."""
    ins, outs = equation.in_avals, equation.out_avals
    widths = [aval.shape[axis] for aval in (*ins, *outs) for axis in aval.width_axes]
    if not widths:
        return ""
    if any(len(a.width_axes) != 1 for k, a in enumerate(ins) if k in places) or any(
        len(a.width_axes) != 1 for a in outs
    ):
        return "a width is summed, made, or one of several"
    if len(set(widths)) > 1:
        return "the length of a width changes"
    base = run(x)

    def changed(change: Callable[[np.ndarray, int], np.ndarray]) -> bool:
        moved = [change(a, ins[k].width_axes[0]) if k in places else a for k, a in enumerate(x)]
        pairs = zip(run(moved), base, outs, strict=True)
        return all(_close(new, change(old, aval.width_axes[0])) for new, old, aval in pairs)

    length = x[places[0]].shape[ins[places[0]].width_axes[0]]
    # Any two coordinates differ in some bit of their numbers.
    for bit in range(length.bit_length()):
        chosen = np.arange(length) >> bit & 1
        if not changed(functools.partial(_times, chosen)):
            return "coordinates along a width depend on each other"
    if not changed(lambda a, axis: np.roll(a, 1, axis)):
        return "coordinates along a width depend on their places"
    return ""


def _times(mask: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """An array with zeros where a mask of the coordinates along an axis is 0."""
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    return array * mask.reshape(shape).astype(array.dtype)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    size = np.max(np.abs(b), initial=0) + np.max(np.abs(a), initial=0)
    return bool(np.all(np.abs(a - b) <= 1e-4 * size))
