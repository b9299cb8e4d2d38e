"""Functions of JAX along a width that are written as what they compute.

How they compute it has no limit step by step: ``jnp.quantile`` sorts a width and looks at places
that follow its length, ``jnp.searchsorted`` and ``jnp.interp`` look up places that hang on every
coordinate. What they compute has one. The jitted function is known by its name, and tried out on
random arrays: one that is called the same and does something else is read as it stands.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit._jax import Primitive
from tplimit.caching.store import kept

Arrays = Sequence[np.ndarray]
Function = Callable[..., Any]
Widths = Sequence[Mapping[int, int]]
#: What an operand is, by its place, where it is an array of numbers known before the run.
Constants = Callable[[int], np.ndarray | None]

#: Quantiles of an array along one of its axes, at the levels of a second one: ``(levels, rest)``.
quantile_p = Primitive("quantile")

#: How often a function is tried out on random arrays of sizes from 1 on, and the largest error: of
#: a place among thousands single precision knows three digits.
_TRIALS, _CLOSE, _RELATIVE = 6, 1e-2, 1e-5
#: The place of a trace at another width than the first one.
_WIDER = 2
#: Which of two neighbours, or what between them, a quantile is.
_METHODS = ("linear", "midpoint", "lower", "higher", "nearest")
#: Of so many knots, at most, an interpolation is a sum of ramps.
_KNOTS = 256


@quantile_p.def_abstract_eval
def _quantile_shape(values: Any, levels: Any, *, axis: int, method: str) -> Any:
    rest = tuple(size for i, size in enumerate(values.shape) if i != axis)
    return values.update(shape=(*levels.shape, *rest), weak_type=False)


class Reading(NamedTuple):
    """What a call may compute: as a program, in NumPy, and random operands to try it out on."""

    function: Function
    plain: Function
    draws: Callable[[np.random.Generator], Arrays]


def written(equations: Sequence[Any], widths: Widths, constants: Constants) -> list[Any] | None:
    """Aligned calls as programs of what they compute, or None where that is not known.

    Args:
        equations: the narrow ones first; these are tried out.
        widths: the width axes of every operand.
        constants: gives operands that are numbers known before the run.
    """
    first = equations[0]
    name = str(first.params.get("name", first.primitive.name)).strip("_")
    if name not in _KNOWN or not any(widths) or len(first.outvars) != 1:
        return None
    if _jax.inner_program(first) is None:  # it is no call
        return None
    readings = [_KNOWN[name](equation, widths, constants) for equation in equations]
    places = (0, _WIDER % len(equations))
    for number in range(len(readings[0])):
        if all(_tried(name, number, equations[k], readings[k][number]) for k in places):
            return [
                _jax.program_of(reading[number].function, equation)
                for equation, reading in zip(equations, readings, strict=True)
            ]
    return None


def _tried(name: str, number: int, equation: Any, reading: Reading) -> bool:
    """Whether a call computes what a reading of its name says, of arrays drawn at random."""
    body = _jax.inner_program(equation)
    test = functools.partial(_agrees, body, reading)
    return kept("known", test, body, name, number)


def _agrees(body: Any, reading: Reading) -> bool:
    random = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        for _ in range(_TRIALS):
            arrays = reading.draws(random)
            (found,) = _jax.jaxpr_as_fun(body)(*map(jnp.asarray, arrays))
            expected = np.asarray(reading.plain(*arrays))
            if found.shape != expected.shape:
                return False
            if not np.allclose(found, expected, rtol=_RELATIVE, atol=_CLOSE):
                return False
    return True


# --- quantiles


def _quantile(equation: Any, widths: Widths, constants: Constants) -> list[Reading]:
    """``quantile(a, q)`` along the only width of ``a``, or over all axes of ``a``."""
    if len(equation.invars) != 2 or len(widths[0]) != 1 or widths[1]:
        return []
    values, levels = (var.aval for var in equation.invars)
    out = equation.outvars[0].aval.shape
    (axis,) = widths[0]
    rest = tuple(size for i, size in enumerate(values.shape) if i != axis)
    with_ones = tuple(1 if i == axis else size for i, size in enumerate(values.shape))
    over_all = rest != () and out == levels.shape
    if not over_all and out not in ((*levels.shape, *rest), (*levels.shape, *with_ones)):
        return []
    keepdims = not over_all and out != (*levels.shape, *rest)
    along = None if over_all else axis
    last = (values.size if over_all else values.shape[axis]) - 1

    def draws(random: np.random.Generator) -> Arrays:
        # Whole numbers in any order, and levels between two of them, near the one or the other; the
        # first quantile is near 0, so that round-off hides no difference between the methods.
        places = random.integers(0, last, levels.shape) + random.choice([0.3, 0.7], levels.shape)
        order = np.arange(values.size if over_all else values.shape[axis], dtype=float)
        order -= np.floor(places.flat[0])
        if over_all:
            a = random.permutation(order).reshape(values.shape)
        else:
            along_last = np.broadcast_to(order, (*rest, len(order)))
            a = np.moveaxis(random.permuted(along_last, axis=-1), -1, axis)
        return a.astype(values.dtype), np.asarray(places / last).astype(levels.dtype)

    def reading(method: Any) -> Reading:
        def function(a: Any, q: Any) -> Any:
            whole = jnp.ravel(a) if over_all else a
            found = quantile_p.bind(whole, q, axis=0 if over_all else axis, method=method)
            return jnp.reshape(found, out)

        def plain(a: np.ndarray, q: np.ndarray) -> Any:
            wide = q.astype(float)
            return np.quantile(a.astype(float), wide, axis=along, keepdims=keepdims, method=method)

        return Reading(function, plain, draws)

    return [reading(method) for method in _METHODS]


# --- places among finitely many numbers


def _searchsorted(equation: Any, widths: Widths, constants: Constants) -> list[Reading]:
    """``searchsorted(edges, x)``: how many of finitely many numbers are below each entry."""
    if len(equation.invars) != 2 or widths[0] or not widths[1]:
        return []
    edges, values = (var.aval for var in equation.invars)
    if edges.ndim != 1 or not edges.size:
        return []
    dtype = equation.outvars[0].aval.dtype

    def draws(random: np.random.Generator) -> Arrays:
        # Whole numbers, so that there are ties.
        a = np.sort(random.integers(-9, 9, edges.shape)).astype(edges.dtype)
        return a, random.integers(-12, 12, values.shape).astype(values.dtype)

    def reading(side: Literal["left", "right"]) -> Reading:
        below = jnp.less if side == "left" else jnp.less_equal

        def function(a: Any, x: Any) -> Any:
            return jnp.sum(below(a, jnp.expand_dims(x, -1)), -1, dtype=dtype)

        return Reading(function, lambda a, x: np.searchsorted(a, x, side), draws)

    return [reading("left"), reading("right")]


def _interp(equation: Any, widths: Widths, constants: Constants) -> list[Reading]:
    """``interp(x, xp, fp)`` with knots that are known and increase: a sum of clipped ramps,

        fp_0 + sum_i (fp_(i+1) - fp_i) / (xp_(i+1) - xp_i) (clip(x, xp_i, xp_(i+1)) - xp_i),

    continuous in every entry, with its values beyond the knots.
    """
    if len(equation.invars) != 3 or not widths[0] or widths[1] or widths[2]:
        return []
    values, knots, heights = (var.aval for var in equation.invars)
    xp = constants(1)
    if xp is None or xp.ndim != 1 or not 2 <= len(xp) <= _KNOTS or not np.all(np.diff(xp) > 0):
        return []

    def function(x: Any, _: Any, fp: Any) -> Any:
        low, high = xp[:-1].astype(values.dtype), xp[1:].astype(values.dtype)
        inside = jnp.minimum(jnp.maximum(jnp.expand_dims(x, -1), low), high) - low
        return fp[0] + jnp.sum(inside * ((fp[1:] - fp[:-1]) / (high - low)), -1)

    def draws(random: np.random.Generator) -> Arrays:
        size = xp[-1] - xp[0]
        x = random.uniform(xp[0] - size, xp[-1] + size, values.shape).astype(values.dtype)
        return x, xp.astype(knots.dtype), random.normal(size=heights.shape).astype(heights.dtype)

    return [Reading(function, np.interp, draws)]


_KNOWN: dict[str, Callable[[Any, Widths, Constants], list[Reading]]] = {
    "quantile": _quantile,
    "nanquantile": _quantile,
    "searchsorted": _searchsorted,
    "interp": _interp,
}


__all__ = ["quantile_p", "written"]
